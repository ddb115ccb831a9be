import io
import tracemalloc
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix

from pipeline import predictions
from pipeline.predictions import COLUMNS, Predictions, collect

TABLE = pd.DataFrame(
    {
        "seed": 0,
        "index": range(6),
        "label": [0, 1, 2, 0, 1, 2],
        "prediction": [0, 2, 2, 1, 1, 0],
        "confidence": [0.9, 0.8, 0.7, 0.99, 0.6, 0.8],
    }
)
TWICE = pd.concat([TABLE, TABLE.assign(seed=3, prediction=1)], ignore_index=True)


def read(table: pd.DataFrame) -> Predictions:
    return predictions.read(io.StringIO(table.to_csv(index=False)))


def test_accuracies_are_scikit_learns() -> None:
    """Each seed has its accuracy and its number of images, in the order of the table."""
    one = collect([TWICE[::-1]])
    assert one.images == {3: 6, 0: 6}
    predicted = [1] * 6, TABLE["prediction"]
    expected = [accuracy_score(TABLE["label"], each) for each in predicted]
    assert one.accuracies == pytest.approx(expected)
    assert (one.test_images, one.first_mistakes) == (6, {0, 2, 3, 5})


@pytest.mark.parametrize("table", [TABLE, TWICE, TABLE.assign(prediction=TABLE["label"])])
def test_the_confusion_matrix_is_scikit_learns(table: pd.DataFrame) -> None:
    """The confusion matrix is scikit-learn's, with classes that never occur."""
    expected = confusion_matrix(table["label"], table["prediction"], labels=range(4))
    np.testing.assert_array_equal(collect([table]).confusion_matrix(4), expected)


def test_the_surest_mistakes_come_first() -> None:
    """Mistakes are ordered by confidence, then by index, each image once, and cut off."""
    twice = pd.concat([TABLE, TABLE.assign(seed=1)])
    assert collect([twice]).surest_mistakes(2)["index"].tolist() == [3, 1]


@pytest.mark.parametrize("rows", [1, 5, 6, 7, 12])
def test_any_size_of_block_gives_the_same(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the size of a block, the counts, the mistakes and the hash are the same."""
    whole = collect([TWICE])
    monkeypatch.setattr(predictions, "ROWS_AT_ONCE", rows)
    parts = read(TWICE)
    assert (parts.images, parts.test_set) == (whole.images, whole.test_set)
    assert parts.right.to_dict() == whole.right.to_dict() == {0: 1, 1: 3, 2: 1}
    pd.testing.assert_frame_equal(parts.mistakes, whole.mistakes)


def test_the_hash_tells_another_test_set() -> None:
    """The same images and labels have one hash, whatever was predicted; other labels another."""
    same = collect([TABLE.assign(prediction=0, confidence=0.5)])
    more_seeds = collect([TWICE])
    other = collect([TABLE.assign(label=[0, 1, 2, 0, 1, 1])])
    assert collect([TABLE]).test_set == same.test_set == more_seeds.test_set != other.test_set


def test_a_table_from_before_there_were_seeds_is_read() -> None:
    """Without the column of seeds, all rows are of one."""
    assert read(TABLE.drop(columns="seed")).images == {0: 6}


def test_a_table_without_rows_is_refused() -> None:
    """A header alone is no table of predictions."""
    with pytest.raises(ValueError, match="there is no row"):
        predictions.read(io.StringIO(",".join(COLUMNS)))


def test_memory_does_not_grow_with_the_test_set(tmp_path: Path) -> None:
    """What was predicted right leaves counts behind: 40 bytes an image would be 20 MB here."""
    table = tmp_path / "predictions.csv"
    with table.open("w") as file:
        file.write(",".join(COLUMNS) + "\n")
        file.writelines(f"0,{index},7,7,0.9\n" for index in range(500_000))
    tracemalloc.start()
    try:
        assert predictions.read(table).images == {0: 500_000}
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()
