import io
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from pipeline.scores import predictions
from pipeline.scores.predictions import COLUMNS, Predictions, collect, read_mistakes
from tests.scores.helpers import LABELS, TABLE

TWICE = pd.concat([TABLE, TABLE.assign(seed=3, prediction=1)], ignore_index=True)


def as_file(table: pd.DataFrame) -> io.StringIO:
    return io.StringIO(table.to_csv(index=False))


def read(table: pd.DataFrame) -> Predictions:
    return predictions.read(as_file(table))


def assert_equal(first: Predictions, second: Predictions) -> None:
    assert (first.images, first.test_set) == (second.images, second.test_set)
    pd.testing.assert_series_equal(
        first.right[first.right > 0], second.right[second.right > 0], check_names=False
    )
    pd.testing.assert_frame_equal(first.mistakes, second.mistakes)


def test_accuracies_equal_scikit_learns() -> None:
    """Each seed has its accuracy and number of images, in the order of the table."""
    reverse = collect([TWICE[::-1]])
    assert reverse.images == {3: 6, 0: 6}
    predicted = [1] * 6, TABLE["prediction"]
    expected = [accuracy_score(TABLE["label"], each) for each in predicted]
    assert reverse.accuracies == pytest.approx(expected)
    assert (reverse.test_images, reverse.first_mistakes) == (6, {0, 2, 3, 5})


@pytest.mark.parametrize("table", [TABLE, TWICE])
@pytest.mark.parametrize(("first", "stop"), [(0, 6), (0, 3), (3, 6), (2, 4), (5, 6), (0, 1)])
@pytest.mark.parametrize("left_out", [(), (1,), (1, 3, 99)])
def test_mistakes_in_a_part_are_counted(
    table: pd.DataFrame, first: int, stop: int, left_out: tuple[int, ...]
) -> None:
    """The mistakes among some images, without those left out, are the mean over seeds."""
    part = table[(table["index"] >= first) & (table["index"] < stop)]
    part = part[[index not in left_out for index in part["index"]]]
    wrong = int((part["label"] != part["prediction"]).sum())
    errors = collect([table]).errors_among(first, stop, left_out)
    assert errors == wrong / table["seed"].nunique()


def test_each_seeds_mistakes_are_known() -> None:
    """The images that a seed misclassifies are told by its number."""
    both = collect([TWICE])
    assert both.mistakes_of(0) == both.first_mistakes == {1, 3, 5}
    assert both.mistakes_of(3) == {0, 2, 3, 5}


@pytest.mark.parametrize("table", [TABLE, TWICE, TABLE.assign(prediction=TABLE["label"])])
def test_the_confusion_matrix_equals_scikit_learns(table: pd.DataFrame) -> None:
    """The confusion matrix equals scikit-learn's, including a class without images."""
    expected = confusion_matrix(table["label"], table["prediction"], labels=range(4))
    np.testing.assert_array_equal(collect([table]).confusion_matrix(4), expected)


def test_the_most_confident_mistakes_come_first() -> None:
    """Mistakes are ordered by confidence, then by index; each image is listed once."""
    twice = pd.concat([TABLE, TABLE.assign(seed=1)])
    assert collect([twice]).confident_mistakes(2)["index"].tolist() == [3, 1]
    assert collect([twice]).confident_mistakes(0).empty


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 12])
def test_the_size_of_blocks_does_not_matter(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Counts and mistakes do not depend on the size of the blocks that are read."""
    whole = collect([TWICE])
    monkeypatch.setattr(predictions, "ROWS_AT_ONCE", rows)
    parts = read(TWICE)
    assert parts.right.to_dict() == {0: 1, 1: 3, 2: 1}
    assert_equal(parts, whole)


@pytest.mark.parametrize("table", [TABLE, TWICE, TABLE.assign(prediction=TABLE["label"])])
def test_mistakes_and_class_sizes_tell_as_much_as_all_predictions(table: pd.DataFrame) -> None:
    """The mistakes with the size of each class give the same as the table of all predictions."""
    mistakes = table[table["label"] != table["prediction"]]
    seeds = table["seed"].unique().tolist()
    assert_equal(
        read_mistakes(as_file(mistakes), seeds, LABELS, "some test set"),
        collect([table], "some test set"),
    )


def test_impossible_mistakes_are_rejected() -> None:
    """Mistakes of an unknown seed, or more of them than a class has images, are rejected."""
    mistakes = TABLE[TABLE["label"] != TABLE["prediction"]]
    with pytest.raises(ValueError, match=r"expected the seeds \[1\], received \[0\]"):
        read_mistakes(as_file(mistakes), [1], LABELS)
    with pytest.raises(ValueError, match="more mistakes than images of label 1"):
        read_mistakes(as_file(mistakes), [0], [2, 0, 2])


def test_a_table_without_seeds_is_read_as_one_seed() -> None:
    """A table from before variants could have several seeds is read as that of one."""
    assert read(TABLE.drop(columns="seed")).images == {0: 6}


def test_a_table_without_rows_is_rejected() -> None:
    """A header alone is not a table of predictions."""
    with pytest.raises(ValueError, match="there are no rows"):
        predictions.read(io.StringIO(",".join(COLUMNS)))


def test_memory_does_not_grow_with_the_test_set(tmp_path: Path) -> None:
    """Of correct predictions only counts are kept: 40 bytes per image would be 20 MB here."""
    table = tmp_path / "predictions.csv"
    with table.open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        file.writelines(f"0,{index},7,7,0.9\n" for index in range(500_000))
    tracemalloc.start()
    try:
        with table.open() as file:
            assert predictions.read(file).images == {0: 500_000}
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
