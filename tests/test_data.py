from pathlib import Path

import numpy as np
import pytest

from pipeline.data import Split, SplitReader, map_split, save_split
from pipeline.errors import DataError
from tests.conftest import make_images


@pytest.fixture
def saved(tmp_path: Path) -> Split:
    split = make_images(10)
    save_split(tmp_path, split)
    return split


def test_a_saved_split_is_mapped_unchanged(tmp_path: Path, saved: Split) -> None:
    """A split that is saved is mapped as it was, read-only."""
    mapped = map_split(tmp_path)
    np.testing.assert_array_equal(mapped.images, saved.images)
    np.testing.assert_array_equal(mapped.labels, saved.labels)
    assert isinstance(mapped.images, np.memmap)
    assert not mapped.images.flags.writeable


def test_a_saved_split_is_plain_npy(tmp_path: Path, saved: Split) -> None:
    """NumPy reads a saved split without this project."""
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), saved.images)


def test_pieces_make_the_whole(tmp_path: Path, saved: Split) -> None:
    """Pieces of any size, the last one ragged, make the whole split."""
    with SplitReader(tmp_path) as reader:
        assert (len(reader), reader.image_shape) == (10, (12, 12, 1))
        pieces = [reader.read(start, start + 4) for start in range(0, 10, 4)]
    np.testing.assert_array_equal(np.concatenate([each.images for each in pieces]), saved.images)
    np.testing.assert_array_equal(np.concatenate([each.labels for each in pieces]), saved.labels)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("images", np.zeros((10, 12, 12, 1), np.float32), r"is not an \.npy array of bytes"),
        ("images", np.zeros((10, 12, 12), np.uint8), r"expected images \(n, height, width, 1\)"),
        ("labels", np.zeros(9, np.uint8), r"expected images .* and labels \(n,\)"),
    ],
)
def test_arrays_that_do_not_belong_together_are_refused(
    tmp_path: Path, saved: Split, name: str, array: np.ndarray, message: str
) -> None:
    """Arrays of another type or shape are refused, with the remedy."""
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(DataError, match=message + ".*run the preprocess stage again"):
        SplitReader(tmp_path)


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY\x01\x00\xff", b"not an array at all"])
def test_damaged_headers_are_refused(tmp_path: Path, saved: Split, content: bytes) -> None:
    """A file that is no array is refused."""
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.npy: is not an \.npy array"):
        SplitReader(tmp_path)


def test_a_truncated_array_is_refused(tmp_path: Path, saved: Split) -> None:
    """An array that is shorter than its header says is refused."""
    path = tmp_path / "images.npy"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="expected bytes of shape"):
        SplitReader(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A missing split is named, with the remedy."""
    with pytest.raises(DataError, match=r"cannot be read \(No such file.*run the preprocess"):
        SplitReader(tmp_path / "test")
