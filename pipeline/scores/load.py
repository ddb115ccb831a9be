"""The results of a variant's stages, loaded for the report."""

import io
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.core import paths
from pipeline.core.errors import DataError, one_line
from pipeline.scores.ensembles import ONLY_SEED
from pipeline.scores.predictions import Predictions, read_mistakes, read_table

CURVE = {"seed": "int64", "epoch": "float64", "loss": "float64", "accuracy": "float64"}
CALIBRATION = {
    "seed": "int64", "calibrated": "int64", "confidence": "float64", "accuracy": "float64",
    "images": "int64",
}  # fmt: skip
MEMORY = {"images": "int64", "peak_memory_mb": "float64"}
RERUN = "; run the stage that writes it again"


@dataclass(frozen=True)
class Result:
    """A variant's or an ensemble's results on a data set, as the stages wrote them.

    The curves have the columns of `CURVE`, ``calibration`` those of `CALIBRATION`, a row for each
    seed and bin, and ``memory`` those of `MEMORY`. An ensemble was not trained and not profiled:
    it has no such tables.
    """

    variant: str
    metrics: dict[str, Any]
    predictions: Predictions
    calibration: pd.DataFrame
    training: dict[str, Any] = field(default_factory=dict)
    profile: dict[str, Any] = field(default_factory=dict)
    training_curve: pd.DataFrame = field(default_factory=pd.DataFrame)
    validation_curve: pd.DataFrame = field(default_factory=pd.DataFrame)
    memory: pd.DataFrame = field(default_factory=pd.DataFrame)

    @property
    def seeds(self) -> int:
        """The number of trainings; 1 of an ensemble."""
        return len(self.predictions.images)


def load_result(dataset: str, variant: str, labels: Sequence[int]) -> Result:
    """Return a variant's results on a data set.

    Parameters
    ----------
    dataset, variant : str
    labels : sequence of int
        The number of test images of each class.

    Raises
    ------
    DataError
        If a file is missing or damaged; the same goes for `load_json` and `load_mistakes`.
    """
    key = dataset, variant
    training = load_json(paths.training(*key))
    return Result(
        variant,
        load_json(paths.metrics(*key)),
        load_mistakes(paths.mistakes(*key), training["seeds"], labels),
        _load_table(paths.calibration(*key), CALIBRATION),
        training,
        load_json(paths.profile(*key)),
        load_curve(paths.curve(*key, "train")),
        load_curve(paths.curve(*key, "validation")),
        _load_table(paths.memory(*key), MEMORY),
    )


def load_ensemble(dataset: str, ensemble: str, labels: Sequence[int]) -> Result:
    """Return an ensemble's results on a data set; parameters and errors as of `load_result`."""
    key = dataset, ensemble
    return Result(
        ensemble,
        load_json(paths.metrics(*key)),
        load_mistakes(paths.mistakes(*key), [ONLY_SEED], labels),
        _load_table(paths.calibration(*key), CALIBRATION),
    )


def load_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file with keys and values."""
    with _reading(path) as text:
        content: dict[str, Any] = json.loads(text)
        if not isinstance(content, dict):
            raise TypeError("expected keys with values")
        return content


def load_mistakes(path: Path, seeds: Sequence[int], labels: Sequence[int]) -> Predictions:
    """Return a variant's predictions, from its table of mistakes."""
    with _reading(path) as text:
        return read_mistakes(io.StringIO(text), seeds, labels)


def load_curve(path: Path) -> pd.DataFrame:
    """Return a learning curve, with the columns of `CURVE`."""
    return _load_table(path, CURVE)


def _load_table(path: Path, columns: dict[str, str]) -> pd.DataFrame:
    with _reading(path) as text:
        return read_table(io.StringIO(text), columns)


@contextmanager
def _reading(path: Path) -> Iterator[str]:
    with readable(f"{path}:", RERUN):
        yield without_conflict(str(path), path.read_text(encoding="utf-8"))


def without_conflict(name: str, text: str) -> str:
    """Return the text of a file, unless it holds a merge conflict, which is a DataError."""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("<<<<<<< "):
            raise DataError(
                f"{name}: holds a merge conflict, in line {number}; merge params and code, and run "
                "the stage that writes it again"
            )
    return text


@contextmanager
def readable(what: str, remedy: str = "") -> Iterator[None]:
    """Turn an error of reading a file or its content into a DataError that says what it was."""
    try:
        yield
    # Not all are ValueErrors: a missing key, a number too large, brackets nested too deeply.
    except (OSError, ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise DataError(f"{what} cannot be read ({one_line(error)}){remedy}") from error
