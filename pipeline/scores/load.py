"""The results of a variant's stages, loaded for the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline.core import paths
from pipeline.core.errors import DataError, one_line
from pipeline.scores import predictions
from pipeline.scores.predictions import Predictions

COLUMNS = {
    "curve": {"seed": "int64", "epoch": "float64", "loss": "float64", "accuracy": "float64"},
    "calibration": {
        "seed": "int64", "confidence": "float64", "accuracy": "float64", "images": "int64",
    },
    "memory": {"images": "int64", "peak_memory_mb": "float64"},
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A variant's results on a data set.

    Attributes
    ----------
    variant : str
    training, metrics, profile : dict
        As the stages wrote them.
    predictions : Predictions
    training_curve, validation_curve : DataFrame
        seed, epoch, loss, accuracy.
    calibration : DataFrame
        A row for each seed and bin: seed, confidence, accuracy, images.
    memory : DataFrame
        images, peak_memory_mb.
    """

    variant: str
    training: dict[str, Any]
    metrics: dict[str, Any]
    profile: dict[str, Any]
    predictions: Predictions
    training_curve: pd.DataFrame
    validation_curve: pd.DataFrame
    calibration: pd.DataFrame
    memory: pd.DataFrame

    @property
    def seeds(self) -> int:
        """The number of trainings."""
        return len(self.training["seeds"])


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
        If a file is missing or damaged.
    """
    training = load_json(paths.training(dataset, variant))
    return Result(
        variant,
        training,
        load_json(paths.metrics(dataset, variant)),
        load_json(paths.profile(dataset, variant)),
        load_mistakes(paths.mistakes(dataset, variant), training["seeds"], labels),
        load_table(paths.curve(dataset, variant, "train"), "curve"),
        load_table(paths.curve(dataset, variant, "validation"), "curve"),
        load_table(paths.calibration(dataset, variant), "calibration"),
        load_table(paths.memory(dataset, variant), "memory"),
    )


def load_json(path: Path) -> dict[str, Any]:
    """Return the content of a JSON file with keys and values.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise TypeError("expected keys with values")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise _unreadable(path, error) from error
    return content


def load_table(path: Path, kind: str) -> pd.DataFrame:
    """Return a table of a kind in `COLUMNS`.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    try:
        with np.errstate(invalid="ignore"):  # pandas itself rejects what is not an integer
            return pd.read_csv(path, dtype=COLUMNS[kind])[list(COLUMNS[kind])]
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise _unreadable(path, error) from error


def load_mistakes(path: Path, seeds: Sequence[int], labels: Sequence[int]) -> Predictions:
    """Return a variant's predictions, from its table of mistakes.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    try:
        return predictions.read_mistakes(path, seeds, labels)
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = one_line(error)
    return DataError(f"{path}: cannot be read ({reason}); run the stage that writes it again")
