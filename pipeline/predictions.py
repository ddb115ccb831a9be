"""What a variant predicted for a test set, in memory that grows with its mistakes alone.

The table that `pipeline.evaluate` wrote is read a block at a time; of what is right, counts remain.
"""

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO

import numpy as np
import pandas as pd
from numpy.typing import NDArray

COLUMNS = {
    "seed": "int64", "index": "int64", "label": "int64", "prediction": "int64",
    "confidence": "float64",
}  # fmt: skip
ROWS_AT_ONCE = 65_536


@dataclass(frozen=True)
class Predictions:
    """Counts over a test set, and the mistakes.

    Attributes
    ----------
    images : dict of int to int
        How many images were predicted with each seed, in the order of the table.
    right : Series
        How many right predictions there are of each label, over all seeds.
    mistakes : DataFrame
        A row of `COLUMNS` for each wrong prediction.
    test_set : str
        A hash of the images' indices and labels, as the first seed has them; empty where it is
        known which test set it is.
    """

    images: dict[int, int]
    right: pd.Series
    mistakes: pd.DataFrame
    test_set: str

    @property
    def accuracies(self) -> list[float]:
        """The accuracy with each seed."""
        errors = self.mistakes["seed"].value_counts()
        return [(n - int(errors.get(seed, 0))) / n for seed, n in self.images.items()]

    @property
    def test_images(self) -> int:
        """How many images there are, as the first seed has them."""
        return next(iter(self.images.values()))

    @property
    def first_mistakes(self) -> set[int]:
        """The indices of the images that are wrong with the first seed."""
        first = self.mistakes["seed"] == next(iter(self.images))
        return set(self.mistakes["index"][first].tolist())

    def confusion_matrix(self, classes: int) -> NDArray[np.int64]:
        """Return counts of shape (classes, classes), labels down and predictions across.

        With several seeds each image counts once for each.
        """
        every = range(classes)
        matrix = pd.crosstab(self.mistakes["label"], self.mistakes["prediction"])
        counts = matrix.reindex(index=every, columns=every, fill_value=0).to_numpy(np.int64)
        return counts + np.diag(self.right.reindex(every, fill_value=0).to_numpy(np.int64))

    def surest_mistakes(self, shown: int) -> pd.DataFrame:
        """Return the wrong predictions with the highest confidence, each image once."""
        wrong = self.mistakes.sort_values(["confidence", "index"], ascending=[False, True])
        return wrong.drop_duplicates("index").head(shown)


def from_mistakes(table: Path | TextIO, seeds: Sequence[int], labels: Sequence[int]) -> Predictions:
    """Return what the mistakes of a test set, and the number of its labels, say of it.

    Parameters
    ----------
    table : Path or text file
        A row of `COLUMNS` for each wrong prediction.
    seeds : sequence of int
        Those of the variant.
    labels : sequence of int
        How many test images each class has.

    Raises
    ------
    OSError, KeyError, ValueError, OverflowError
        If it is not a valid table, or has more mistakes than images.
    """
    with np.errstate(invalid="ignore"):  # pandas refuses itself what is no whole number
        mistakes = pd.read_csv(table, dtype=COLUMNS)[list(COLUMNS)]
    if not set(mistakes["seed"]) <= set(seeds):
        raise ValueError(f"expected the seeds {[*seeds]}, received {sorted({*mistakes['seed']})}")
    wrong = mistakes["label"].value_counts()
    right = len(seeds) * pd.Series(labels, dtype="int64")
    right = right.sub(wrong, fill_value=0).astype("int64")
    if (right < 0).any():
        raise ValueError(f"more mistakes than images of label {right.idxmin()}")
    return Predictions(dict.fromkeys(seeds, sum(labels)), right, mistakes, test_set="")


def read(table: Path | TextIO) -> Predictions:
    """Read a table of predictions.

    Raises
    ------
    OSError, KeyError, ValueError, OverflowError
        If it is none, as pandas tells it.
    """
    with (
        np.errstate(invalid="ignore"),  # pandas refuses itself what is no whole number
        pd.read_csv(table, dtype=COLUMNS, chunksize=ROWS_AT_ONCE) as blocks,
    ):
        return collect(blocks)


def collect(blocks: Iterable[pd.DataFrame]) -> Predictions:
    """Return what blocks of a table hold.

    Raises
    ------
    KeyError, ValueError
        If a column is missing, or there is no row.
    """
    images: dict[int, int] = {}
    right = pd.Series(dtype="int64")
    mistakes = []
    test_set = hashlib.sha256()
    for block in blocks:
        if "seed" not in block:  # as it was before a variant could have several
            block = block.assign(seed=0)
        counts = block["seed"].value_counts(sort=False)
        for seed, count in zip(counts.index.tolist(), counts.tolist(), strict=True):
            images[seed] = images.get(seed, 0) + count
        wrong = block["label"] != block["prediction"]
        right = right.add(block.loc[~wrong, "label"].value_counts(), fill_value=0).astype("int64")
        mistakes.append(block.loc[wrong, list(COLUMNS)])
        of_first_seed = block["seed"] == next(iter(images), None)
        test_set.update(block.loc[of_first_seed, ["index", "label"]].to_numpy().tobytes())
    if not images:
        raise ValueError("there is no row")
    return Predictions(images, right, pd.concat(mistakes, ignore_index=True), test_set.hexdigest())
