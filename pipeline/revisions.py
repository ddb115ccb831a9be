"""What each git revision, branch, tag, DVC experiment, or the workspace, has measured.

Predictions come through DVC, from its cache or a remote; metrics, parameters and code from git.
"""

import hashlib
import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline import paths, predictions
from pipeline.errors import DataError, one_line
from pipeline.params import load_yaml
from pipeline.predictions import Predictions

WORKSPACE = "workspace"
LOCK = Path("dvc.lock")
MD5 = re.compile(r"[0-9a-f]{32}")
EVALUATION = re.compile(r"evaluate@(?P<dataset>[a-z0-9_]+)-(?P<variant>[a-z0-9_]+)")

Key = tuple[str, str]  # data set, variant


@dataclass(frozen=True)
class Measured:
    """What a revision measured of a variant on a data set.

    Attributes
    ----------
    metrics : dict
        As the evaluation wrote them.
    predictions : Predictions or None
        None if they cannot be had.
    digest : str or None
        The hash of the predictions that dvc.lock has; None where the file itself is there.
    inputs : dict
        The parameters, by dotted name, and the hashes of the code, that it was made with.
    """

    metrics: dict[str, Any]
    predictions: Predictions | None
    digest: str | None
    inputs: dict[str, Any]


class Counts(BaseModel):
    """What a file of metrics must have to be compared."""

    model_config = ConfigDict(strict=True, allow_inf_nan=False)

    n: int = Field(ge=1)
    errors: float = Field(ge=0)
    accuracy_deviation: float | None = None
    evaluation: dict[str, Any] = {}

    @model_validator(mode="after")
    def _no_more_errors_than_images(self) -> "Counts":
        if self.errors > self.n:
            raise ValueError(f"{self.errors:g} errors of {self.n} images")
        return self


class Revisions:
    """Reads revisions of a repository.

    Parameters
    ----------
    root : Path

    Raises
    ------
    DataError
        If it is not a repository of git and DVC.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        try:
            self.repo = Repo(str(root))
        except DvcException as error:
            raise DataError(f"{root}: is not a DVC repository ({one_line(error)})") from error
        self.tables: dict[str, Predictions | None] = {}

    def read(self, name: str) -> dict[Key, Measured]:
        """Return what a revision measured, by data set and variant.

        Raises
        ------
        DataError
            If the revision is unknown, or its files cannot be read.
        """
        revision = None if name == WORKSPACE else self.resolve(name)
        self._yaml(name, revision, paths.PARAMS)  # a revision that nobody can run is told
        stages = stages_of(f"{name}: {LOCK}", self._yaml(name, revision, LOCK))
        measured = {}
        for stage, lock in stages.items():
            match = EVALUATION.fullmatch(stage)
            if match:
                key = match["dataset"], match["variant"]
                metrics = self._text(revision, paths.metrics(*key))
                if metrics is not None:
                    digest = digest_of(lock, paths.predictions(*key))
                    table = self._predictions(name, revision, digest, paths.predictions(*key))
                    if revision is None and table is not None:
                        digest = None  # the file may be newer than dvc.lock
                    measured[key] = Measured(
                        parse_metrics(name, paths.metrics(*key), metrics),
                        table,
                        digest,
                        dict(inputs_of(stages, key)),
                    )
        if not measured:
            raise DataError(f"{name}: has no metrics; reproduce and commit there")
        return measured

    def resolve(self, name: str) -> str:
        """Return the commit of a revision, branch, tag or DVC experiment.

        Raises
        ------
        DataError
            If there is none of that name, or several experiments.
        """
        commit = self._git(
            "rev-parse", "--verify", "--quiet", "--end-of-options", f"{name}^{{commit}}"
        )
        if commit:
            return commit.strip()
        refs = self._git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps") or ""
        found = [line.split()[0] for line in refs.splitlines() if line.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(f"{name}: {len(found)} experiments have this name; give the commit")
        shallow = (self._git("rev-parse", "--is-shallow-repository") or "").strip() == "true"
        remedy = (
            "this clone is shallow: git fetch --unshallow"
            if shallow
            else "git branch, git tag and dvc exp list show the known ones"
        )
        raise DataError(f"{name}: is no revision, branch, tag or experiment; {remedy}")

    def _git(self, *command: str) -> str | None:
        done = subprocess.run(  # noqa: S603
            ["git", *command],  # noqa: S607
            cwd=self.root,
            capture_output=True,
            check=False,
        )
        # What is no UTF-8 becomes what no reader takes for a number.
        return done.stdout.decode(errors="replace") if done.returncode == 0 else None

    def _text(self, revision: str | None, path: Path) -> str | None:
        """Return a file's text; None if there is no such file."""
        if revision is not None:
            return self._git("show", f"{revision}:./{path}")
        try:
            return (self.root / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def _yaml(self, name: str, revision: str | None, path: Path) -> dict[str, Any]:
        text = self._text(revision, path)
        if text is None:
            raise DataError(f"{name}: has no {path}")
        return parse_yaml(f"{name}: {path}", text)

    def _predictions(
        self, name: str, revision: str | None, md5: str | None, path: Path
    ) -> Predictions | None:
        if revision is None:
            text = self._text(None, path)
            return None if text is None else parse_predictions(name, text)
        if md5 is None:
            return None
        if md5 not in self.tables:
            text = self._cached(md5)
            self.tables[md5] = None if text is None else parse_predictions(name, text)
        return self.tables[md5]

    def _cached(self, md5: str) -> str | None:
        """Return the text of a cached file, fetched from the remote if need be."""
        cache = self.repo.cache.local
        if not cache.exists(md5):
            try:
                self.repo.cloud.pull([HashInfo("md5", md5)])
            except Exception:
                return None  # no remote, or it does not answer: told as predictions not to be had
        try:
            content = Path(cache.oid_to_path(md5)).read_bytes()
        except OSError:
            return None
        if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
            return None  # damaged, and as good as lost
        return content.decode(errors="replace")


def parse_yaml(place: str, text: str) -> dict[str, Any]:
    """Return the content of a YAML file that is a table.

    Raises
    ------
    DataError
        If it is no such file.
    """
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise DataError(f"{place} is not valid YAML: {error}") from error
    return _table_at(place, content)


def stages_of(place: str, lock_file: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.lock, by name.

    Raises
    ------
    DataError
        If they are no tables.
    """
    stages = _table_at(f"{place}: stages", lock_file.get("stages", {}))
    return {str(name): _table_at(f"{place}: {name}", stage) for name, stage in stages.items()}


def _table_at(place: str, content: Any) -> dict[str, Any]:
    if not isinstance(content, dict):
        raise DataError(f"{place}: expected keys with values")
    return content


def _entries(lock: dict[str, Any], kind: str) -> Iterator[dict[str, Any]]:
    """Yield the outputs or the dependencies of a stage in dvc.lock."""
    entries = lock.get(kind, [])
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            yield entry


def digest_of(lock: dict[str, Any], path: Path) -> str | None:
    """Return the hash that a stage of dvc.lock has of one of its outputs."""
    hashes = [out.get("md5") for out in _entries(lock, "outs") if out.get("path") == str(path)]
    return hashes[0] if hashes and MD5.fullmatch(str(hashes[0])) else None


def parse_predictions(name: str, text: str) -> Predictions:
    """Return a revision's predictions.

    Raises
    ------
    DataError
        If the text is no such table.
    """
    try:
        return predictions.read(io.StringIO(text))
    except (ValueError, KeyError, OverflowError) as error:
        raise DataError(f"{name}: predictions cannot be read ({one_line(error)})") from error


def parse_metrics(name: str, path: Path, text: str) -> dict[str, Any]:
    """Return a revision's metrics of a variant.

    Raises
    ------
    DataError
        If the text is no JSON, or lacks the counts.
    """
    try:
        content: dict[str, Any] = json.loads(text)
        Counts.model_validate(content)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{name}: {path} cannot be read ({one_line(error)})") from error
    return content


def inputs_of(stages: dict[str, Any], key: Key) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and the hashes of the code of all stages behind an evaluation."""
    dataset, variant = key
    for stage in (
        f"download@{dataset}", f"preprocess@{dataset}",
        f"train@{dataset}-{variant}", f"evaluate@{dataset}-{variant}",
    ):  # fmt: skip
        lock = stages.get(stage, {})
        params = lock.get("params", {})
        for values in params.values() if isinstance(params, dict) else []:
            yield from _leaves("", values)
        for dep in _entries(lock, "deps"):
            if str(dep.get("path")).endswith(".py"):
                yield str(dep["path"]), dep.get("md5")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(f"{name}.{key}".removeprefix("."), each)
    else:
        yield name, value
