"""A variant's predictions for a test set, in memory that grows only with its mistakes.

Tables are read block by block; of the correct predictions only counts are kept.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
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
    """The mistakes on a test set, and counts of the rest.

    Attributes
    ----------
    images : dict of int to int
        The number of images predicted with each seed, in the order of the table.
    right : Series
        The number of correct predictions of each label, over all seeds.
    mistakes : DataFrame
        A row of `COLUMNS` for each misclassified image.
    test_set : str
        Identifies the test set; empty if unknown.
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
        """The number of test images."""
        return next(iter(self.images.values()))

    @property
    def first_mistakes(self) -> set[int]:
        """The indices of the images that the first seed misclassifies."""
        return self.mistakes_of(next(iter(self.images)))

    def mistakes_of(self, seed: int) -> set[int]:
        """Return the indices of the images that a seed misclassifies."""
        return set(self.mistakes["index"][self.mistakes["seed"] == seed].tolist())

    def errors_among(self, first: int, stop: int, left_out: Collection[int] = ()) -> float:
        """Return the mistakes among the images `first` to `stop`, the last one excluded.

        It is the mean over seeds, without the images that are `left_out`.
        """
        index = self.mistakes["index"]
        counted = (index >= first) & (index < stop) & ~index.isin(list(left_out))
        return int(counted.sum()) / len(self.images)

    def confusion_matrix(self, classes: int) -> NDArray[np.int64]:
        """Return counts of shape (classes, classes), labels down and predictions across.

        With several seeds each image counts once per seed.
        """
        every = range(classes)
        matrix = pd.crosstab(self.mistakes["label"], self.mistakes["prediction"])
        counts = matrix.reindex(index=every, columns=every, fill_value=0).to_numpy(np.int64)
        return counts + np.diag(self.right.reindex(every, fill_value=0).to_numpy(np.int64))

    def confident_mistakes(self, shown: int) -> pd.DataFrame:
        """Return the most confident mistakes, each image once."""
        wrong = self.mistakes.sort_values(["confidence", "index"], ascending=[False, True])
        return wrong.drop_duplicates("index").head(shown)


def read_table(table: TextIO, columns: Mapping[str, str]) -> pd.DataFrame:
    """Return the `columns` of a CSV file, given with their types.

    Raises
    ------
    OSError, KeyError, ValueError, OverflowError
        If the file cannot be read, lacks a column, or has a value of another type.
    """
    with np.errstate(invalid="ignore"):  # pandas itself rejects what is not an integer
        return pd.read_csv(table, dtype=dict(columns))[list(columns)]


def read_mistakes(
    table: TextIO, seeds: Sequence[int], labels: Sequence[int], test_set: str = ""
) -> Predictions:
    """Return the predictions in a table that has a row of `COLUMNS` for each misclassified image.

    Parameters
    ----------
    table : text file
    seeds : sequence of int
        All that the variant was trained with.
    labels : sequence of int
        The number of test images of each class.
    test_set : str

    Raises
    ------
    OSError, KeyError, ValueError, OverflowError
        If it is not such a table, or has more mistakes than there are images.
    """
    mistakes = read_table(table, COLUMNS)
    if not set(mistakes["seed"]) <= set(seeds):
        raise ValueError(f"expected the seeds {[*seeds]}, received {sorted({*mistakes['seed']})}")
    wrong = mistakes["label"].value_counts()
    right = len(seeds) * pd.Series(labels, dtype="int64")
    right = right.sub(wrong, fill_value=0).astype("int64")
    if (right < 0).any():
        raise ValueError(f"more mistakes than images of label {right.idxmin()}")
    return Predictions(dict.fromkeys(seeds, sum(labels)), right, mistakes, test_set)


def read(table: TextIO, test_set: str = "") -> Predictions:
    """Read a table of all predictions.

    Raises
    ------
    OSError, KeyError, ValueError, OverflowError
        If the file is not a valid predictions table.
    """
    with (
        np.errstate(invalid="ignore"),  # pandas itself rejects what is not an integer
        pd.read_csv(table, dtype=COLUMNS, chunksize=ROWS_AT_ONCE) as blocks,
    ):
        return collect(blocks, test_set)


def collect(blocks: Iterable[pd.DataFrame], test_set: str = "") -> Predictions:
    """Return the predictions in the blocks of a table.

    Raises
    ------
    KeyError, ValueError
        If a column is missing, or there is no row.
    """
    images: dict[int, int] = {}
    right = pd.Series(dtype="int64")
    mistakes = []
    for block in blocks:
        if "seed" not in block:  # tables from before variants could have several
            block = block.assign(seed=0)
        counts = block["seed"].value_counts(sort=False)
        for seed, count in zip(counts.index.tolist(), counts.tolist(), strict=True):
            images[seed] = images.get(seed, 0) + count
        wrong = block["label"] != block["prediction"]
        right = right.add(block.loc[~wrong, "label"].value_counts(), fill_value=0).astype("int64")
        mistakes.append(block.loc[wrong, list(COLUMNS)])
    if not images:
        raise ValueError("there are no rows")
    return Predictions(images, right, pd.concat(mistakes, ignore_index=True), test_set)
