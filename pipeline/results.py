"""What a variant's stages left behind, read for the report."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from pipeline import paths, predictions
from pipeline.errors import DataError, one_line
from pipeline.predictions import Predictions

COLUMNS = {
    "curve": {"seed": "int64", "epoch": "float64", "loss": "float64", "accuracy": "float64"},
    "reliability": {
        "seed": "int64", "confidence": "float64", "accuracy": "float64", "images": "int64",
    },
    "footprint": {"chunk_size": "int64", "peak_memory_mb": "float64"},
}  # fmt: skip


@dataclass(frozen=True)
class Result:
    """A variant's results on a data set.

    Attributes
    ----------
    variant : str
    training, metrics : dict
        As the stages wrote them.
    predictions : Predictions
    training_curve, validation_curve : DataFrame
        seed, epoch, loss, accuracy.
    reliability : DataFrame
        A row for each seed and bin: seed, confidence, accuracy, images.
    footprint : DataFrame
        chunk_size, peak_memory_mb.
    """

    variant: str
    training: dict[str, Any]
    metrics: dict[str, Any]
    predictions: Predictions
    training_curve: pd.DataFrame
    validation_curve: pd.DataFrame
    reliability: pd.DataFrame
    footprint: pd.DataFrame

    @property
    def seeds(self) -> int:
        """How many trainings there were."""
        return len(self.training["seeds"])


def read_result(dataset: str, variant: str, labels: Sequence[int]) -> Result:
    """Read a variant's results.

    Parameters
    ----------
    dataset, variant : str
    labels : sequence of int
        How many test images each class has.

    Raises
    ------
    DataError
        If one is missing or damaged.
    """
    training = read_json(paths.training(dataset, variant))
    return Result(
        variant,
        training,
        read_json(paths.metrics(dataset, variant)),
        read_mistakes(paths.mistakes(dataset, variant), training["seeds"], labels),
        read_table(paths.history(dataset, variant, "train"), "curve"),
        read_table(paths.history(dataset, variant, "validation"), "curve"),
        read_table(paths.reliability(dataset, variant), "reliability"),
        read_table(paths.footprint(dataset, variant), "footprint"),
    )


def read_json(path: Path) -> dict[str, Any]:
    """Read what a stage measured.

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


def read_table(path: Path, kind: str) -> pd.DataFrame:
    """Read a table of a kind, see `COLUMNS`.

    Raises
    ------
    DataError
        If it is missing or damaged.
    """
    try:
        with np.errstate(invalid="ignore"):  # pandas refuses itself what is no whole number
            return pd.read_csv(path, dtype=COLUMNS[kind])[list(COLUMNS[kind])]
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise _unreadable(path, error) from error


def read_mistakes(path: Path, seeds: Sequence[int], labels: Sequence[int]) -> Predictions:
    """Read a variant's mistakes.

    Raises
    ------
    DataError
        If they are missing or damaged.
    """
    try:
        return predictions.from_mistakes(path, seeds, labels)
    except (OSError, ValueError, KeyError, OverflowError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    reason = one_line(error)
    return DataError(f"{path}: cannot be read ({reason}); run the stage that writes it again")
