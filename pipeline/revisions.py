"""What each git revision, branch, tag, DVC experiment, or the workspace, has measured.

Predictions come through DVC, from its cache or a remote; metrics, parameters and code from git.
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
from dvc.exceptions import DvcException
from dvc.repo import Repo
from dvc_data.hashfile.hash_info import HashInfo
from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from pipeline import paths
from pipeline.errors import DataError

WORKSPACE = "workspace"
LOCK = Path("dvc.lock")
EVALUATION = re.compile(r"evaluate@(?P<dataset>[a-z0-9_]+)-(?P<variant>[a-z0-9_]+)")
COLUMNS = {"seed": "int64", "index": "int64", "label": "int64", "prediction": "int64"}

Key = tuple[str, str]  # data set, variant


@dataclass(frozen=True)
class Measured:
    """What a revision measured of a variant on a data set.

    Attributes
    ----------
    metrics : dict
        As the evaluation wrote them.
    predictions : DataFrame or None
        A row for each seed and test image: seed, index, label, prediction; None if they cannot be
        had.
    digest : str or None
        The hash of the predictions that dvc.lock has; None where the file itself is there.
    inputs : dict
        The parameters, by dotted name, and the hashes of the code, that it was made with.
    """

    metrics: dict[str, Any]
    predictions: pd.DataFrame | None
    digest: str | None
    inputs: dict[str, Any]


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
            reason = " ".join(str(error).split())
            raise DataError(f"{root}: is not a DVC repository ({reason})") from error
        self.tables: dict[str, pd.DataFrame | None] = {}

    def read(self, name: str) -> dict[Key, Measured]:
        """Return what a revision measured, by data set and variant.

        Raises
        ------
        DataError
            If the revision is unknown, or its files cannot be read.
        """
        revision = None if name == WORKSPACE else self.resolve(name)
        self._yaml(name, revision, paths.PARAMS)  # a revision that nobody can run is told
        stages = self._yaml(name, revision, LOCK).get("stages", {})
        measured = {}
        for stage, lock in stages.items():
            match = EVALUATION.fullmatch(stage)
            if match:
                key = match["dataset"], match["variant"]
                metrics = self._text(revision, paths.metrics(*key))
                if metrics is not None:
                    digest = _digest(lock, paths.predictions(*key))
                    table = self._predictions(name, revision, digest, paths.predictions(*key))
                    if revision is None and table is not None:
                        digest = None  # the file may be newer than dvc.lock
                    measured[key] = Measured(
                        _json(name, paths.metrics(*key), metrics),
                        table,
                        digest,
                        dict(_inputs(stages, key)),
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
        commit = self._git("rev-parse", "--verify", "--quiet", f"{name}^{{commit}}")
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
            text=True,
            check=False,
        )
        return done.stdout if done.returncode == 0 else None

    def _text(self, revision: str | None, path: Path) -> str | None:
        """Return a file's text; None if there is no such file."""
        if revision is not None:
            return self._git("show", f"{revision}:./{path}")
        try:
            return (self.root / path).read_text(encoding="utf-8")
        except OSError:
            return None

    def _yaml(self, name: str, revision: str | None, path: Path) -> dict[str, Any]:
        text = self._text(revision, path)
        if text is None:
            raise DataError(f"{name}: has no {path}")
        try:
            content = YAML(typ="safe").load(text)
        except YAMLError as error:
            reason = " ".join(str(error).split())
            raise DataError(f"{name}: {path} is not valid YAML: {reason}") from error
        if not isinstance(content, dict):
            raise DataError(f"{name}: {path}: expected keys with values")
        return content

    def _predictions(
        self, name: str, revision: str | None, md5: str | None, path: Path
    ) -> pd.DataFrame | None:
        if revision is None:
            text = self._text(None, path)
            return None if text is None else _table(name, text)
        if md5 is None:
            return None
        if md5 not in self.tables:
            text = self._cached(md5)
            self.tables[md5] = None if text is None else _table(name, text)
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
            return Path(cache.oid_to_path(md5)).read_text(encoding="utf-8")
        except OSError:
            return None


def _digest(lock: dict[str, Any], path: Path) -> str | None:
    """Return the hash that a stage of dvc.lock has of one of its outputs."""
    hashes = [out.get("md5") for out in lock.get("outs", []) if out.get("path") == str(path)]
    return str(hashes[0]) if hashes and hashes[0] else None


def _table(name: str, text: str) -> pd.DataFrame:
    try:
        table = pd.read_csv(io.StringIO(text), dtype=COLUMNS)
        if "seed" not in table:  # as it was before a variant could have several
            table["seed"] = 0
        return table[list(COLUMNS)]
    except (ValueError, KeyError) as error:
        raise DataError(f"{name}: predictions cannot be read ({error})") from error


def _json(name: str, path: Path, text: str) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(text)
        if not isinstance(content["n"], int) or not isinstance(content["errors"], int | float):
            raise TypeError("n and errors are numbers")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{name}: {path} cannot be read ({error})") from error
    return content


def _inputs(stages: dict[str, Any], key: Key) -> Iterator[tuple[str, Any]]:
    """Yield the parameters and the hashes of the code of all stages behind an evaluation."""
    dataset, variant = key
    for stage in (
        f"download@{dataset}", f"preprocess@{dataset}",
        f"train@{dataset}-{variant}", f"evaluate@{dataset}-{variant}",
    ):  # fmt: skip
        lock = stages.get(stage, {})
        for values in lock.get("params", {}).values():
            for name, value in values.items():
                yield from _leaves(name, value)
        for dep in lock.get("deps", []):
            if str(dep["path"]).endswith(".py"):
                yield dep["path"], dep.get("md5")


def _leaves(name: str, value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, each in value.items():
            yield from _leaves(f"{name}.{key}", each)
    else:
        yield name, value
