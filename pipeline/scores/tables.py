"""The files of an evaluation: predictions, mistakes, metrics and calibration curves."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.core import paths
from pipeline.core.files import whole_file, write_json, write_text
from pipeline.scores.metrics import Totals, over_seeds

COLUMNS = ("seed", "index", "label", "prediction", "confidence")


class PredictionTables(AbstractContextManager["PredictionTables"]):
    """Writes a row under `COLUMNS` for each test image, and for each mistake in a second table.

    Both files appear if the block ends without an error.

    Parameters
    ----------
    predictions, mistakes : Path
    """

    def __init__(self, predictions: Path, mistakes: Path) -> None:
        self.stack = ExitStack()
        self.predictions, self.mistakes = (
            self.stack.enter_context(whole_file(path, "w")) for path in (predictions, mistakes)
        )
        for table in (self.predictions, self.mistakes):
            table.write(",".join(COLUMNS) + "\n")

    def add(
        self,
        seed: int,
        start: int,
        labels: NDArray[np.uint8],
        predicted: NDArray[np.int64],
        confidences: NDArray[np.float64],
    ) -> None:
        """Add a chunk, whose first image is the test set's image `start`; arrays of shape (n,)."""
        columns = (array.tolist() for array in (labels, predicted, confidences))
        indices = range(start, start + len(labels))
        for index, label, prediction, confidence in zip(indices, *columns, strict=True):
            row = f"{seed},{index},{label},{prediction},{confidence:.6f}\n"
            self.predictions.write(row)
            if label != prediction:
                self.mistakes.write(row)

    def __exit__(self, *error: Any) -> None:
        self.stack.__exit__(*error)


def tables_of(dataset: str, variant: str) -> PredictionTables:
    """Return the tables of a variant, or of an ensemble."""
    return PredictionTables(paths.predictions(dataset, variant), paths.mistakes(dataset, variant))


def summarise(totals: Mapping[int, Totals], precision: str) -> dict[str, Any]:
    """Return the metrics over seeds, and a warning if a seed is no better than chance."""
    by_chance = ", ".join(str(seed) for seed, each in totals.items() if each.is_chance)
    warning = {"warning": f"no better than chance with seed {by_chance}"} if by_chance else {}
    metrics = over_seeds({seed: each.metrics() for seed, each in totals.items()})
    return {**warning, "precision": precision, **metrics}


def calibration(totals: Mapping[int, Totals]) -> str:
    """Return the calibration curves as CSV: a row for each seed and bin of confidence.

    They are those without a temperature, ``calibrated`` 0, and with it, ``calibrated`` 1.
    """
    rows = [
        f"{seed},{calibrated},{confidence:.6f},{accuracy:.6f},{images}\n"
        for seed, each in totals.items()
        for calibrated, reliability in enumerate((each.raw, each.calibrated))
        for confidence, accuracy, images in reliability.curve()
    ]
    return "".join(["seed,calibrated,confidence,accuracy,images\n", *rows])


def write_scores(dataset: str, variant: str, totals: Mapping[int, Totals], precision: str) -> None:
    """Write the calibration curves and the metrics, given by seed, and print the metrics."""
    metrics = summarise(totals, precision)
    write_text(paths.calibration(dataset, variant), calibration(totals))
    write_json(paths.metrics(dataset, variant), metrics)
    print(f"{dataset}/{variant}: {metrics}")
    if "warning" in metrics:
        print(f"warning: {dataset}/{variant}: {metrics['warning']}")
