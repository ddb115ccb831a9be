from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pydantic import ValidationError

from pipeline.core.errors import DataError
from pipeline.datasets import idx
from pipeline.datasets.raw import (
    Images,
    Labels,
    RawImages,
    Writers,
    open_part,
    read_labels,
    read_writers,
)
from tests.helpers import write_idx

PIXELS = np.random.default_rng(0).integers(0, 256, (7, 5, 9, 3), dtype=np.uint8)
GREY = PIXELS[..., 0]
LABELS = np.arange(7, dtype=np.uint8) % 3


def read(path: Path, stored: NDArray[Any], **settings: Any) -> NDArray[np.uint8]:
    """Write an array, and return the images that are read from it."""
    write_idx(path, stored)
    with idx.IdxFile(path, (3, 4)) as file:
        images = RawImages(file, Images.model_validate(settings))
        blocks = list(images.blocks())
        assert images.shape == (len(stored), *blocks[0].shape[1:])
    whole = np.concatenate(blocks)
    assert whole.dtype == np.uint8
    return whole


@pytest.mark.parametrize(
    ("stored", "settings", "expected"),
    [
        (GREY, {}, GREY[..., None]),
        (GREY.transpose(0, 2, 1), {"transposed": True}, GREY[..., None]),
        (PIXELS, {"layout": "NHWC"}, PIXELS),
        (PIXELS.transpose(0, 3, 1, 2), {"layout": "NCHW"}, PIXELS),
        (PIXELS.transpose(0, 2, 1, 3), {"layout": "NHWC", "transposed": True}, PIXELS),
        (PIXELS.transpose(0, 3, 2, 1), {"layout": "NCHW", "transposed": True}, PIXELS),
        (GREY // 2, {}, GREY[..., None] // 2),
    ],
)
def test_every_layout_ends_in_the_same_pixels(
    tmp_path: Path, stored: NDArray[np.uint8], settings: dict[str, Any], expected: NDArray[np.uint8]
) -> None:
    """Transposed images, and colours first or last, become rows, columns and channels."""
    np.testing.assert_array_equal(read(tmp_path / "images", stored, **settings), expected)


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32])
def test_integers_of_0_to_255_are_taken_as_they_are(tmp_path: Path, kind: type[np.int8]) -> None:
    """Wider and signed integers of 0 to 255 need no range."""
    grey = GREY // 2 if kind is np.int8 else GREY
    received = read(tmp_path / "images", grey.astype(kind))
    np.testing.assert_array_equal(received[..., 0], grey)


@pytest.mark.parametrize(
    ("kind", "value"),
    [(np.int8, -1), (np.int16, 256), (np.int16, -300), (np.int32, 70_000), (np.int32, -(2**31))],
)
def test_integers_beyond_0_to_255_are_named(
    tmp_path: Path, kind: type[np.int8], value: int
) -> None:
    """An integer out of range is named with the index of its image, and does not wrap around."""
    stored = np.full((7, 5, 9), 100, kind)
    stored[4, 2, 3] = value
    with pytest.raises(
        DataError, match=rf"images: image 4 has a pixel of {value}, expected 0 to 255; fix the file"
    ):
        read(tmp_path / "images", stored)


def test_images_are_counted_over_blocks(tmp_path: Path) -> None:
    """An image that is not in the first block is named with its index in the file."""
    stored = np.zeros((2500, 30, 30), np.int16)
    stored[2100, 29, 29] = -7
    with pytest.raises(DataError, match="image 2100 has a pixel of -7, expected 0 to 255"):
        read(tmp_path / "images", stored)


@pytest.mark.parametrize(
    ("kind", "low", "high"),
    [(np.float32, 0, 1), (np.float64, -1.0, 1.0), (np.float32, 0, 255), (np.int16, -100, 155),
     (np.uint8, 0, 255), (np.int32, 0, 255_000)],
)  # fmt: skip
def test_a_range_becomes_0_to_255(
    tmp_path: Path, kind: type[np.float64], low: float, high: float
) -> None:
    """The lower value becomes black, the higher one white, and those between the nearest grey."""
    values = np.linspace(low, high, 256).reshape(2, 8, 16)
    whole = np.issubdtype(kind, np.integer)
    stored = (np.rint(values) if whole else values).astype(kind)
    received = read(tmp_path / "images", stored, range=[low, high])
    np.testing.assert_array_equal(received, np.arange(256).reshape(2, 8, 16, 1))


@pytest.mark.parametrize("kind", [np.float32, np.float64])
@pytest.mark.parametrize("value", [-0.25, 1.5, np.nan, np.inf])
def test_floats_beyond_their_range_are_named(
    tmp_path: Path, kind: type[np.float64], value: float
) -> None:
    """A value beyond the range, or none at all, is named with the index of its image."""
    stored = np.full((7, 5, 9), 0.5, kind)
    stored[6, 0, 8] = value
    with pytest.raises(DataError, match=f"image 6 has a pixel of {value}, expected 0 to 1; fix"):
        read(tmp_path / "images", stored, range=[0, 1])


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_floats_need_a_range(tmp_path: Path, kind: type[np.float64]) -> None:
    """Images of floats are refused without a range, even if all are between 0 and 1."""
    with pytest.raises(DataError, match=r"floating-point images; .*images\.range, such as \[0, 1"):
        read(tmp_path / "images", np.zeros((7, 5, 9), kind))


def test_a_layout_is_for_four_dimensions(tmp_path: Path) -> None:
    """Images of four dimensions need a layout, and those of three take none."""
    with pytest.raises(DataError, match=r"of 2 dimensions, which need no images\.layout; remove"):
        read(tmp_path / "images", GREY, layout="NHWC")
    with pytest.raises(DataError, match=r"of 3 dimensions, and does not say .* to NHWC or NCHW"):
        read(tmp_path / "images", PIXELS)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Images, {"range": [1, 0]}),
        (Images, {"range": [1, 1]}),
        (Images, {"range": [0, 1, 2]}),
        (Images, {"range": [0, float("inf")]}),
        (Images, {"layout": "HWCN"}),
        (Images, {"transposed": 1}),
        (Images, {"transpose": True}),
        (Labels, {"column": -1}),
        (Labels, {"offset": 0.5}),
        (Writers, {"column": -1}),
        (Writers, {"label_column": "0"}),
    ],
)
def test_nonsense_is_rejected(kind: type[Images], content: dict[str, object]) -> None:
    """A range that does not rise, and unknown or wrong settings, are rejected."""
    with pytest.raises(ValidationError):
        kind.model_validate(content)


@pytest.mark.parametrize("kind", [np.uint8, np.int8, np.int16, np.int32])
@pytest.mark.parametrize("offset", [0, 1, 40])
def test_labels_begin_at_their_offset(tmp_path: Path, kind: type[np.int8], offset: int) -> None:
    """Labels of any integer type that begin at 1, or elsewhere, become those from 0 on."""
    stored = np.arange(26).astype(kind) + kind(offset)
    write_idx(tmp_path / "labels", stored)
    labels = read_labels(tmp_path / "labels", 26, Labels(offset=offset))
    np.testing.assert_array_equal(labels, np.arange(26))
    assert labels.dtype == np.uint8


@pytest.mark.parametrize(
    ("value", "offset", "message"),
    [
        (27, 1, "label 27 at index 3, expected 1 to 26"),
        (0, 1, "label 0 at index 3, expected 1 to 26"),
        (26, 0, "label 26 at index 3, expected 0 to 25"),
        (-1, 0, "label -1 at index 3, expected 0 to 25"),
        (256, 0, "label 256 at index 3, expected 0 to 25"),
        (-(2**31), 2**31 - 1, r"label -2147483648 at index 3, expected 2147483647 to"),
    ],
)
def test_a_label_that_is_no_class_is_named(
    tmp_path: Path, value: int, offset: int, message: str
) -> None:
    """A label below or above the classes is named as the file has it, with its index."""
    stored = np.full(9, offset, np.int32)
    stored[3] = value
    write_idx(tmp_path / "labels", stored)
    with pytest.raises(DataError, match=f"labels: {message}"):
        read_labels(tmp_path / "labels", 26, Labels(offset=offset))


def test_256_classes_fit_a_byte(tmp_path: Path) -> None:
    """The largest label of 256 classes is kept."""
    write_idx(tmp_path / "labels", np.array([0, 255], np.int32))
    assert read_labels(tmp_path / "labels", 256, Labels()).tolist() == [0, 255]


TABLE = np.array([[5, 0, 2576], [0, 1, 2577], [4, 2, 2576]], np.int32)  # as QMNIST has it


def test_labels_are_taken_from_a_column(tmp_path: Path) -> None:
    """Of a table of integers the column that is named has the labels."""
    write_idx(tmp_path / "labels", TABLE)
    assert read_labels(tmp_path / "labels", 10, Labels(column=0)).tolist() == [5, 0, 4]
    assert read_labels(tmp_path / "labels", 10, Labels(column=1)).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("stored", "column", "message"),
    [
        (TABLE, None, r"is a table of 3 columns; say .* preprocess\.labels\.column .*from 0"),
        (TABLE, 3, r"has 3 columns, and preprocess\.labels\.column is 3, counted from 0"),
        (TABLE[:, :1], 1, r"has 1 column, and preprocess\.labels\.column is 1, counted from 0"),
        (TABLE[:, 0], 0, r"has 1 column, and preprocess\.labels\.column is 0"),
        (TABLE.astype(np.float32), 0, "has floating-point labels, expected integers"),
        (TABLE[:, 0].astype(np.float64), None, "has floating-point labels, expected integers"),
    ],
)
def test_labels_that_cannot_be_taken_are_refused(
    tmp_path: Path, stored: NDArray[Any], column: int | None, message: str
) -> None:
    """A missing or too large column, or labels that are no integers, are refused."""
    write_idx(tmp_path / "labels", stored)
    with pytest.raises(DataError, match=f"labels: {message}"):
        read_labels(tmp_path / "labels", 10, Labels(column=column))


@pytest.mark.parametrize("label_column", [None, 0])
def test_writers_are_taken_from_a_column(tmp_path: Path, label_column: int | None) -> None:
    """A column names the writer of each image, and another one may confirm the labels."""
    write_idx(tmp_path / "writers", TABLE)
    settings = Writers(column=2, label_column=label_column)
    writers = read_writers(tmp_path / "writers", TABLE[:, 0].astype(np.uint8), settings)
    assert writers.tolist() == [2576, 2577, 2576]
    assert writers.dtype == np.int64


def test_a_list_of_writers_needs_no_column(tmp_path: Path) -> None:
    """A file of writers alone is read without a column."""
    write_idx(tmp_path / "writers", np.array([-3, 2**31 - 1, 0], np.int32))
    labels = np.zeros(3, np.uint8)
    writers = read_writers(tmp_path / "writers", labels, Writers())
    assert writers.tolist() == [-3, 2**31 - 1, 0]


@pytest.mark.parametrize(
    ("labels", "stored", "column", "message"),
    [
        ([5, 0], TABLE, 2, "names the writers of 3 images, and there are 2 training images"),
        ([5, 7, 4], TABLE, 2, "has the label 0 at index 1, and the training image there 7"),
        ([5, 0, 4], TABLE, None, r"is a table of 3 columns; .* preprocess\.writers\.column"),
        ([5, 0, 4], TABLE, 9, r"has 3 columns, and preprocess\.writers\.column is 9"),
        ([5, 0, 4], TABLE.astype(np.float32), 2, "has floating-point writers"),
    ],
)
def test_writers_of_other_images_are_refused(
    tmp_path: Path, labels: list[int], stored: NDArray[Any], column: int | None, message: str
) -> None:
    """Writers that do not fit the images in number or in labels are refused."""
    write_idx(tmp_path / "writers", stored)
    with pytest.raises(DataError, match=f"writers: {message}"):
        read_writers(
            tmp_path / "writers", np.array(labels, np.uint8), Writers(column=column, label_column=0)
        )


def test_a_part_has_images_with_their_labels(tmp_path: Path) -> None:
    """Images and labels of one half of the data are opened together."""
    write_idx(tmp_path / "train_images", PIXELS.transpose(0, 3, 1, 2))
    write_idx(tmp_path / "train_labels", LABELS + 1)
    with open_part(tmp_path, "train", 3, Images(layout="NCHW"), Labels(offset=1)) as raw:
        assert raw.images.shape == PIXELS.shape
        np.testing.assert_array_equal(np.concatenate(list(raw.images.blocks())), PIXELS)
        np.testing.assert_array_equal(raw.labels, LABELS)


def test_a_part_needs_a_label_for_each_image(tmp_path: Path) -> None:
    """Another number of labels than of images is refused."""
    write_idx(tmp_path / "test_images", GREY)
    write_idx(tmp_path / "test_labels", LABELS[:-1])
    with (
        pytest.raises(DataError, match="7 test images, but 6 test labels; both files must come"),
        open_part(tmp_path, "test", 3, Images(), Labels()),
    ):
        pass
