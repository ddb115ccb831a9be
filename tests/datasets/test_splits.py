import struct
from pathlib import Path

import numpy as np
import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import DataError
from pipeline.datasets.splits import (
    Classes,
    Split,
    SplitReader,
    class_names,
    map_split,
    save_split,
)
from tests.helpers import make_images


@pytest.fixture
def saved(tmp_path: Path) -> Split:
    split = make_images(10)
    save_split(tmp_path, split)
    return split


def test_a_saved_split_is_mapped_unchanged(tmp_path: Path, saved: Split) -> None:
    """A saved split is mapped into memory unchanged and read-only."""
    mapped = map_split(tmp_path)
    np.testing.assert_array_equal(mapped.images, saved.images)
    np.testing.assert_array_equal(mapped.labels, saved.labels)
    assert isinstance(mapped.images, np.memmap)
    assert not mapped.images.flags.writeable


def test_a_saved_split_is_plain_npy(tmp_path: Path, saved: Split) -> None:
    """NumPy can read a saved split without this project."""
    np.testing.assert_array_equal(np.load(tmp_path / "images.npy"), saved.images)
    np.testing.assert_array_equal(np.load(tmp_path / "labels.npy"), saved.labels)


def test_a_split_that_numpy_saved_is_read(tmp_path: Path) -> None:
    """A split that NumPy saved can be read, so that other programs may prepare one."""
    split = make_images(10)
    for name, array in split._asdict().items():
        np.save(tmp_path / f"{name}.npy", array)
    np.testing.assert_array_equal(map_split(tmp_path).images, split.images)
    np.testing.assert_array_equal(map_split(tmp_path).labels, split.labels)


@pytest.mark.parametrize(
    "shape",
    [
        (0, 12, 12, 1),
        (4, 3, 5, 3),
        (0, 3, 5, 3),
    ],
)
def test_a_split_may_be_empty_or_in_colour(tmp_path: Path, shape: tuple[int, ...]) -> None:
    """A split without images, or of several channels, is read and mapped with its shape."""
    images = np.arange(np.prod(shape)).astype(np.uint8).reshape(shape)
    save_split(tmp_path, Split(images, np.zeros(len(images), np.uint8)))
    mapped = map_split(tmp_path)
    np.testing.assert_array_equal(mapped.images, images)
    assert mapped.labels.shape == shape[:1]
    with SplitReader(tmp_path) as reader:
        assert (len(reader), reader.image_shape) == (shape[0], shape[1:])


def test_pieces_make_the_whole(tmp_path: Path, saved: Split) -> None:
    """Pieces read one by one, the last one shorter, add up to the whole split."""
    with SplitReader(tmp_path) as reader:
        assert (len(reader), reader.image_shape) == (10, (12, 12, 1))
        pieces = [reader.read(start, start + 4) for start in range(0, 10, 4)]
    np.testing.assert_array_equal(np.concatenate([each.images for each in pieces]), saved.images)
    np.testing.assert_array_equal(np.concatenate([each.labels for each in pieces]), saved.labels)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("images", np.zeros((10, 12, 12, 1), np.float32), r"is not an \.npy array of uint8"),
        ("images", np.asfortranarray(np.zeros((10, 12, 12, 1), np.uint8)), "of uint8 in C order"),
        ("images", np.zeros((10, 12, 12), np.uint8), r"expected images \(n, height, .*, channels"),
        ("labels", np.zeros(9, np.uint8), r"expected images .* and labels \(n,\)"),
    ],
)
def test_arrays_that_do_not_match_are_rejected(
    tmp_path: Path, saved: Split, name: str, array: np.ndarray, message: str
) -> None:
    """Arrays of another type, order or shape are rejected, with the remedy."""
    np.save(tmp_path / f"{name}.npy", array)
    with pytest.raises(DataError, match=message + ".*run the preprocess stage again"):
        SplitReader(tmp_path)


def npy(header: str) -> bytes:
    """Return an .npy file with a header and the bytes of ten images."""
    text = header.encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(10 * 12 * 12)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not an array at all",
        b"\x93NUMPY\x01\x00\xff",
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10, 12, 12, 1)} ["),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': (10L, 12, 12, 1)}"),
        npy("{'descr': '|u1', 'fortran_order': False, 'shape': " + "(" * 300 + ")" * 300 + "}"),
        npy("{[]: 1}"),
        npy("'\\N{x}'"),
        npy("3"),
    ],
)
def test_damaged_headers_are_rejected(tmp_path: Path, saved: Split, content: bytes) -> None:
    """A file that is not an array is rejected."""
    (tmp_path / "images.npy").write_bytes(content)
    with pytest.raises(DataError, match=r"images\.npy: is not an \.npy array"):
        SplitReader(tmp_path)


def test_an_array_of_another_length_is_rejected(tmp_path: Path, saved: Split) -> None:
    """An array that is shorter or longer than its header says is rejected."""
    path = tmp_path / "images.npy"
    content = path.read_bytes()
    for wrong in (content[:-1], content + b"?"):
        path.write_bytes(wrong)
        with pytest.raises(DataError, match=r"expected uint8 of shape \(10, 12, 12, 1\), received"):
            SplitReader(tmp_path)


def test_negative_sizes_are_rejected(tmp_path: Path, saved: Split) -> None:
    """A header whose sizes are negative is rejected, even if their product is right."""
    header = "{'descr': '|u1', 'fortran_order': False, 'shape': (-10, -12, 12, 1)}"
    (tmp_path / "images.npy").write_bytes(npy(header))
    with pytest.raises(DataError, match="expected uint8 of shape"):
        SplitReader(tmp_path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """If a split is missing, the error names it and the remedy."""
    with pytest.raises(DataError, match=r"cannot be read \(No such file.*run the preprocess"):
        SplitReader(tmp_path / "test")


def test_classes_are_a_number_or_names() -> None:
    """Classes have the names that are given, or else their numbers."""
    assert class_names(3) == ["0", "1", "2"]
    assert class_names(["cat", "dog"]) == ["cat", "dog"]


@pytest.mark.parametrize("value", [2, 256, ["cat", "dog"], [str(n) for n in range(256)]])
def test_2_to_256_classes_are_accepted(value: object) -> None:
    """Classes are numbered, or named, from 2 to as many as a byte tells apart."""
    assert TypeAdapter(Classes).validate_python(value, strict=True) == value


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (257, "expected the number of classes, 2 to 256, or a list of as many names, received 257"),
        (1, "expected the number of classes"),
        (True, "received True"),
        (2.0, "received 2.0"),
        ("10", "received '10'"),
        (None, "received None"),
        (["cat"], "or a list of as many names, received"),
        ([str(n) for n in range(257)], "or a list of as many names, received"),
        (["cat", "dog", "cat"], "expected the name of each class once"),
        ([0, 1], "expected a name for each class; put numbers into quotes"),
        (["cat", ""], "expected a name for each class"),
    ],
)
def test_other_classes_are_rejected(value: object, message: str) -> None:
    """Too few or too many classes are rejected, and names that are empty, no text or given twice."""
    with pytest.raises(ValidationError) as error:
        TypeAdapter(Classes).validate_python(value, strict=True)
    assert message in str(error.value)
