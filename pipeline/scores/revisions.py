"""The results at each git revision, branch, tag or DVC experiment, and in the workspace.

All of them are in git, but for the predictions of commits from before the mistakes were: those come
through DVC, from its cache or a remote.
"""

import io
import json
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from dvc.api import DVCFileSystem
from dvc.exceptions import DvcException
from pydantic import BaseModel, ConfigDict, Field, model_validator

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import load_yaml
from pipeline.scores import predictions
from pipeline.scores.load import readable, without_conflict
from pipeline.scores.predictions import Predictions

WORKSPACE = "workspace"
LOCK = Path("dvc.lock")
MD5 = re.compile(r"[0-9a-f]{32}")
EVALUATION = re.compile(r"evaluate@(?P<dataset>[a-z0-9_]+)-(?P<variant>[a-z0-9_]+)")

Key = tuple[str, str]  # data set, variant
# Metrics, profile and predictions.
Found = tuple[dict[str, Any], dict[str, Any], Predictions | None]


@dataclass(frozen=True)
class Measured:
    """A variant's results on a data set at a revision.

    ``profile`` is empty, and ``predictions`` None, if they are not available. ``digest`` is the
    hash of the predictions in dvc.lock, or None if the file itself may be newer. ``inputs`` has the
    parameters, by dotted name, and the hashes of the code, that produced the results.
    """

    metrics: dict[str, Any]
    profile: dict[str, Any]
    predictions: Predictions | None
    digest: str | None
    inputs: dict[str, Any]


class Counts(BaseModel):
    """The part of a metrics file that a comparison needs."""

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
    """Reads the revisions of a repository; a DataError if `root` is not one of git and DVC."""

    def __init__(self, root: Path) -> None:
        self.root = root
        if not (root / ".dvc").is_dir():
            raise DataError(f"{root}: is not a DVC repository; run from the project's root")

    def read(self, name: str) -> dict[Key, Measured]:
        """Return the results at a revision, by data set and variant.

        Raises
        ------
        DataError
            If the revision is unknown, or its files cannot be read.
        """
        files = _Files(self.root, name, None if name == WORKSPACE else self.resolve(name))
        files.yaml(paths.PARAMS)  # nobody could run a revision whose params cannot be read
        stages = stages_of(f"{name}: {LOCK}", files.yaml(LOCK))
        measured = {}
        for stage, lock in stages.items():
            if match := EVALUATION.fullmatch(stage):
                key = match["dataset"], match["variant"]
                if result := _result(files, key) or _old_result(files, key):
                    digest = digest_of(lock, paths.predictions(*key))
                    if files.revision is None and result[-1] is not None:
                        digest = None
                    measured[key] = Measured(*result, digest, dict(inputs_of(stages, key)))
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
        verify = ("rev-parse", "--verify", "--quiet", "--end-of-options")
        if commit := self._git(*verify, f"{name}^{{commit}}"):
            return commit
        refs = self._git("for-each-ref", "--format=%(objectname) %(refname)", "refs/exps")
        found = [line.split()[0] for line in refs.splitlines() if line.endswith(f"/{name}")]
        if len(found) == 1:
            return found[0]
        if found:
            raise DataError(
                f"{name}: {len(found)} experiments have this name; use the commit instead"
            )
        remedy = "git branch, git tag and dvc exp list show the known ones"
        if self._git("rev-parse", "--is-shallow-repository") == "true":
            remedy = "this clone is shallow: git fetch --unshallow"
        raise DataError(f"{name}: is not a revision, branch, tag or experiment; {remedy}")

    def _git(self, *arguments: str) -> str:
        """Return what git prints; nothing if it fails."""
        command = ["git", *arguments]
        done = subprocess.run(command, cwd=self.root, capture_output=True, check=False)  # noqa: S603
        return done.stdout.decode(errors="replace").strip() if done.returncode == 0 else ""


class _Files:
    """The files of one revision, or of the workspace if `revision` is None."""

    def __init__(self, root: Path, name: str, revision: str | None) -> None:
        self.root, self.name, self.revision = root, name, revision
        self.system = None if revision is None else DVCFileSystem(str(root), rev=revision)

    def text(self, path: Path, *, cached: bool = False) -> str | None:
        """Return a file's text; None if there is none. DVC rather than git has what is `cached`."""
        try:
            if self.system is None:
                text = (self.root / path).read_text(encoding="utf-8", errors="replace")
                return without_conflict(str(path), text)
            content: bytes = self.system.read_bytes(f"/{path}")
            return content.decode(errors="replace")
        except (OSError, DvcException):
            return None
        # Each kind of remote has a library of its own, with errors of its own.
        except Exception:
            if cached:
                return None  # no reachable remote; the caller reports missing predictions
            raise

    def json(self, path: Path) -> dict[str, Any]:
        """Return the content of a JSON file with keys and values; empty if there is none."""
        text = self.text(path) or "{}"
        with readable(f"{self.name}: {path}"):
            content = json.loads(text)
        return content if isinstance(content, dict) else {}

    def yaml(self, path: Path) -> dict[str, Any]:
        """Return the content of a YAML file with keys and values."""
        text = self.text(path)
        if text is None:
            raise DataError(f"{self.name}: has no {path}")
        return parse_yaml(f"{self.name}: {path}", text)


def _result(files: _Files, key: Key) -> Found | None:
    """Return a variant's results; None if there are no metrics."""
    path = paths.metrics(*key)
    text = files.text(path)
    if text is None:
        return None
    metrics = parse_metrics(files.name, path, text)
    summary = files.json(paths.summary(key[0]))
    mistakes = files.text(paths.mistakes(*key))
    table = None if mistakes is None else parse_mistakes(files.name, mistakes, metrics, summary)
    return metrics, files.json(paths.profile(*key)), table


def _old_result(files: _Files, key: Key) -> Found | None:
    """Return the same from where it was until version 0.1."""
    dataset, variant = key
    path = Path("metrics") / dataset / f"{variant}.json"
    text = files.text(path)
    if text is None:
        return None
    metrics = parse_metrics(files.name, path, text)
    measured = metrics.pop("evaluation", {})
    names = {
        "peak_memory_mb": "peak_memory_mb",
        "images_per_second": "evaluation_images_per_second",
    }
    profile = {new: measured[old] for old, new in names.items() if old in measured}
    test_set = test_set_of(files.json(Path("data/summary") / f"{dataset}.json"))
    predicted = files.text(paths.predictions(*key), cached=True)
    table = None if predicted is None else parse_predictions(files.name, predicted, test_set)
    return metrics, profile, table


# What others wrote: each of these raises a DataError if it is not what it should be.


def parse_yaml(place: str, text: str) -> dict[str, Any]:
    """Return the content of a YAML file that has keys with values."""
    try:
        content = load_yaml(text)
    except ValueError as error:
        raise DataError(f"{place} is not valid YAML: {error}") from error
    return _table_at(place, content)


def stages_of(place: str, lock_file: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the stages of a dvc.lock, by name."""
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
    """Return the hash of an output that a stage of dvc.lock has."""
    hashes = [out.get("md5") for out in _entries(lock, "outs") if out.get("path") == str(path)]
    return hashes[0] if hashes and MD5.fullmatch(str(hashes[0])) else None


def parse_predictions(name: str, text: str, test_set: str = "") -> Predictions:
    """Return a revision's predictions, from a table of all of them."""
    with readable(f"{name}: predictions"):
        return predictions.read(io.StringIO(text), test_set)


def parse_mistakes(
    name: str, text: str, metrics: dict[str, Any], summary: dict[str, Any]
) -> Predictions:
    """Return a revision's predictions, from its mistakes and the summary of its data set."""
    with readable(f"{name}: mistakes"):
        seeds = [int(seed) for seed in metrics.get("by_seed", {})]
        labels = summary["images_per_class"]["test"]
        seeds = seeds or sorted(set(pd.read_csv(io.StringIO(text))["seed"].tolist())) or [0]
        return predictions.read_mistakes(io.StringIO(text), seeds, labels, test_set_of(summary))


def test_set_of(summary: dict[str, Any]) -> str:
    """Return what identifies a test set: the hash of its labels; empty if unknown."""
    hashes = summary.get("sha256")
    return str(hashes.get("test_labels", "")) if isinstance(hashes, dict) else ""


def parse_metrics(name: str, path: Path, text: str) -> dict[str, Any]:
    """Return a revision's metrics of a variant, which have at least the `Counts`."""
    with readable(f"{name}: {path}"):
        content: dict[str, Any] = json.loads(text)
        Counts.model_validate(content)
        return content


def inputs_of(stages: dict[str, Any], key: Key) -> Iterator[tuple[str, Any]]:
    """Yield parameters and hashes of code of all stages that an evaluation depends on."""
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
            if str(dep.get("path")).startswith("pipeline/"):
                yield str(dep["path"]), dep.get("md5")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(f"{name}.{key}".removeprefix("."), each)
    else:
        yield name, value
