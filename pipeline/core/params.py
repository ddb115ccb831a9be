"""params.yaml, read strictly: unknown keys and wrong values are rejected by name.

Each stage reads its own section alone, so a change of one stage's section does not affect another
stage.
"""

import re
import reprlib
from collections import Counter
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline.core import paths
from pipeline.core.errors import ParamsError, one_line

SECTIONS = (
    "run", "selection", "record", "datasets", "variants", "ensembles", "preprocess", "train",
    "evaluate", "profile", "report", "runtime",
)  # fmt: skip
LISTS = ("run", "selection", "record")  # what is run together, each by a dvc.yaml of its own
UNTRACKED = ("runtime",)  # sections that change no result, and so are no dependency
DATASET_KEYS = ("classes", "download", "preprocess", "train", "report", "pictures")
# Names become file names and stage names, so they may neither leave a folder nor need quoting.
NAME = re.compile(r"[a-z0-9][a-z0-9_]*")
# The parser in C, which DVC uses too, crashes on what is nested some 20,000 deep.
DEEPEST = 5_000
NESTING = re.compile(r"[ \t?:-]+")

T = TypeVar("T")


def load_yaml(text: str) -> Any:
    """Return the content of a YAML text as DVC reads it: YAML 1.2, in which 1e-3 is a number.

    Raises
    ------
    ValueError
        If it is invalid, nested too deeply, or gives two values the same anchor.
    """
    deepest = max((len(run) for run in NESTING.findall(text)), default=0)
    if deepest > DEEPEST or text.count("[") + text.count("{") > DEEPEST:
        raise ValueError("it is nested too deeply")
    try:
        return YAML(typ="safe").load(text)
    except (YAMLError, ValueError, TypeError, LookupError, RecursionError) as error:
        # Not all are YAMLErrors: an empty !!int is an IndexError, a table as a key a TypeError.
        raise ValueError(one_line(error)) from error


def nearest(name: str, known: Iterable[str]) -> str:
    """Return a hint for an unknown `name`: the nearest known one, or all of them."""
    known = [str(each) for each in known]
    close = get_close_matches(name, known, n=1, cutoff=0.5)
    return f"did you mean {close[0]!r}?" if close else f"known are: {', '.join(sorted(known))}"


def shortened(value: Any) -> str:
    """Return a value for an error message, abbreviated if it is long or deeply nested."""
    return reprlib.repr(value)


class Section(BaseModel):
    """A part of params.yaml: typed, immutable, without unknown keys."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown_keys(cls, content: Any) -> Any:
        if isinstance(content, dict):
            for key in content:
                if key not in cls.model_fields:
                    raise ValueError(f"unknown key {key!r}; {nearest(str(key), cls.model_fields)}")
        return content


def _none_twice(items: list[T]) -> list[T]:
    for item, count in Counter(items).items():
        if count > 1:
            raise ValueError(f"expected each once, received {item!r} {count} times")
    return items


# A list of at least one item, and of none twice.
Distinct = Annotated[list[T], Field(min_length=1), AfterValidator(_none_twice)]


class Run(Section):
    """What is run together: every data set with every variant, and then with every ensemble."""

    datasets: Distinct[str]
    variants: Distinct[str]
    ensembles: Annotated[list[str], AfterValidator(_none_twice)] = []


class Others(Run):
    """What is run together, beside the first list; it may be nothing."""

    datasets: Annotated[list[str], AfterValidator(_none_twice)]
    variants: Annotated[list[str], AfterValidator(_none_twice)]


class Params:
    """The content of a params.yaml, read part by part.

    Parameters
    ----------
    path : Path
        The file.

    Raises
    ------
    ParamsError
        If the file cannot be read or parsed, has an unknown section or an unknown key of a data
        set, has a name that is not made of lower-case letters, digits and underscores, or lists
        what is not in its table, or a data set in two lists.
    """

    def __init__(self, path: Path = paths.PARAMS) -> None:
        self.path = path
        self.read: dict[str, Any] = {}
        try:
            content = load_yaml(path.read_text(encoding="utf-8"))
        except (OSError, UnicodeDecodeError) as error:
            raise ParamsError(f"{path}: cannot be read ({error}); run from the root") from error
        except ValueError as error:
            raise ParamsError(f"{path}: is not valid YAML: {error}") from error
        self.content = _table(content, str(path))
        self._refuse_unknown(self.content, SECTIONS, "")
        rows = {table: self._rows(table) for table in Run.model_fields}
        for name, row in rows["datasets"].items():
            place = f"datasets.{name}"
            self._refuse_unknown(_table(row, f"{path}: {place}"), DATASET_KEYS, f"{place}.")
        self.lists: dict[str, Run] = {
            each: self._check(each, self.content[each], Run if each == LISTS[0] else Others)
            for each in LISTS
            if each in self.content
        }
        for each, run in self.lists.items():
            for table, names in run:
                for name in names:
                    if name not in rows[table]:
                        raise ParamsError(
                            f"{path}: {each}.{table}: there is no {name!r} in {table}; "
                            f"{nearest(name, rows[table])}"
                        )
            for dataset in run.datasets:
                if self.list_of(dataset) != each:
                    raise ParamsError(
                        f"{path}: {each}.datasets: {dataset!r} is in {self.list_of(dataset)}."
                        "datasets too, and its results lie in one place; give it a second row, "
                        "under another name"
                    )

    def list_of(self, dataset: str) -> str:
        """Return the first of `LISTS` that has a data set; ``run`` if none has it."""
        return next((each for each, run in self.lists.items() if dataset in run.datasets), "run")

    def _rows(self, table: str) -> dict[str, Any]:
        rows = _table(self.content.get(table, {}), f"{self.path}: {table}")
        for name in rows:
            if not NAME.fullmatch(str(name)):
                raise ParamsError(
                    f"{self.path}: {table}.{name}: a name has lower-case letters, digits and "
                    "underscores, and starts with a letter or digit"
                )
        return rows

    def get(self, key: str, kind: type[T] | Any) -> T:
        """Return the value at a dotted `key`, validated as `kind`.

        Parameters
        ----------
        key : str
            Such as ``"variants.lenet5"``.
        kind : type
            A `Section`, or any type that pydantic can validate.

        Raises
        ------
        ParamsError
            If the key is missing, or the value is of another kind.
        """
        value = self._find(key)
        if key.partition(".")[0] not in UNTRACKED:
            self.read[key] = value
        checked: T = self._check(key, value, kind)
        return checked

    def _check(self, key: str, value: Any, kind: type[T] | Any) -> T:
        try:
            checked: T = TypeAdapter(kind).validate_python(value, strict=True)
        except ValidationError as error:
            raise ParamsError(f"{self.path}: {_explain(key, error)}") from None
        return checked

    def changed_since_read(self) -> list[str]:
        """Return the keys that were read and whose values in the file have changed since."""
        try:
            now = Params(self.path)
        except ParamsError:
            return [str(self.path)]
        return [key for key, value in self.read.items() if not now._has(key, value)]

    def _has(self, key: str, value: Any) -> bool:
        try:
            return bool(self._find(key) == value)
        except ParamsError:
            return False

    def _find(self, key: str) -> Any:
        value: Any = self.content
        parts = key.split(".")
        for depth, part in enumerate(parts):
            place = ".".join(parts[:depth])
            table = _table(value, f"{self.path}: {place}")
            if part not in table:
                where = f"{place}: " if place else ""
                raise ParamsError(
                    f"{self.path}: {where}there is no {part!r}; {nearest(part, table)}"
                )
            value = table[part]
        return value

    def _refuse_unknown(self, table: dict[str, Any], known: Iterable[str], place: str) -> None:
        for key in table:
            if key not in known:
                raise ParamsError(
                    f"{self.path}: unknown key {place + str(key)!r}; {nearest(str(key), known)}"
                )


def _table(value: Any, where: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise ParamsError(f"{where}: expected keys with values, received {shortened(value)}")
    return value


def _explain(key: str, error: ValidationError) -> str:
    """Return pydantic's first error as place, problem, received value and hint."""
    first = error.errors(include_url=False)[0]
    place = key
    for step in first["loc"]:
        place += f"[{step}]" if isinstance(step, int) else f".{step}"
    if first["type"] == "missing":
        return f"{place}: is missing"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{place}: {message}"
    explained = f"{place}: {message[0].lower()}{message[1:]}, received "
    explained += shortened(first["input"])
    allowed = re.findall(r"'([^']+)'", str(first.get("ctx", {}).get("expected", "")))
    if allowed and isinstance(first["input"], str):
        explained += f"; {nearest(first['input'], allowed)}"
    return explained
