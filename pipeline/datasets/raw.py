"""A data set's raw IDX files as pixels, labels and writers, whatever their layout.

Nothing about a layout is guessed: what a file does not say itself, params.yaml has to.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt, model_validator

from pipeline.core.errors import DataError
from pipeline.core.params import Section
from pipeline.datasets import idx

PIXEL_MAX = 255
LABEL_TYPES = {0x08, 0x09, 0x0B, 0x0C}  # integers

Number = Annotated[float, Field(strict=False)]


class Images(Section):
    """How a data set's images are stored.

    ``transposed`` swaps rows and columns; ``layout`` says where the channels of four-dimensional
    images are; ``range`` has the values that become black, 0, and white, 255. Images of floats need
    a range, and integers that are not 0…255.
    """

    transposed: bool = False
    layout: Literal["NHWC", "NCHW"] | None = None
    range: Annotated[list[Number], Field(min_length=2, max_length=2)] | None = None

    @model_validator(mode="after")
    def _low_then_high(self) -> "Images":
        if self.range is not None and self.range[0] >= self.range[1]:
            raise ValueError(f"range: expected a lower and a higher value, received {self.range}")
        return self


class Labels(Section):
    """How a data set's labels are stored: in a ``column`` of a table, or from ``offset`` on."""

    column: NonNegativeInt | None = None
    offset: int = 0


class Writers(Section):
    """The ``column`` of ``train_writers`` that names who wrote each training image.

    If another one, ``label_column``, has the labels, they must be those of the images.
    """

    column: NonNegativeInt | None = None
    label_column: NonNegativeInt | None = None


class RawImages:
    """The images of an IDX file, to be read block by block.

    Parameters
    ----------
    file : IdxFile
    settings : Images

    Attributes
    ----------
    shape : tuple of int
        (n, height, width, channels).
    """

    def __init__(self, file: idx.IdxFile, settings: Images) -> None:
        self.file, self.settings = file, settings
        layout = settings.layout
        if (len(file.shape) == 4) != (layout is not None):
            raise DataError(
                f"{file.path}: has images of {len(file.shape) - 1} dimensions, "
                + (
                    "which need no images.layout; remove it"
                    if layout
                    else "and does not say which are the channels; set the data set's "
                    "preprocess.images.layout to NHWC or NCHW"
                )
            )
        if file.dtype.kind == "f" and settings.range is None:
            raise DataError(
                f"{file.path}: has floating-point images; say which values are black and white: "
                "set the data set's preprocess.images.range, such as [0, 1]"
            )
        self.shape = (file.shape[0], *self._arrange(np.empty((0, *file.shape[1:]))).shape[1:])

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the images in order, as uint8 (n, height, width, channels).

        Raises
        ------
        DataError
            If the file is damaged, or a value is out of range.
        """
        done = 0
        for block in self.file.blocks():
            yield self._as_bytes(self._arrange(block), done)
            done += len(block)

    def _arrange(self, block: NDArray[Any]) -> NDArray[Any]:
        if self.settings.layout is None:
            block = block[..., None]
        elif self.settings.layout == "NCHW":
            block = np.moveaxis(block, 1, -1)
        return np.swapaxes(block, 1, 2) if self.settings.transposed else block

    def _as_bytes(self, block: NDArray[Any], first: int) -> NDArray[np.uint8]:
        low, high = self.settings.range or (0, PIXEL_MAX)
        if block.dtype.itemsize > 1 or block.dtype.kind != "u" or self.settings.range:
            within = (block >= low) & (block <= high)  # false for what is not a number
            if not within.all():
                place = np.unravel_index(int(np.argmin(within)), within.shape)
                raise DataError(
                    f"{self.file.path}: image {first + int(place[0])} has a pixel of "
                    f"{block[place]}, expected {low:g} to {high:g}; fix the file, or the data "
                    "set's preprocess.images.range"
                )
        if self.settings.range:
            block = np.rint((block.astype(np.float64) - low) * (PIXEL_MAX / (high - low)))
        return block.astype(np.uint8)


class Raw(NamedTuple):
    """One half of the raw files: images to read block by block, and all labels, uint8 (n,)."""

    images: RawImages
    labels: NDArray[np.uint8]


@contextmanager
def open_part(
    folder: Path, part: str, classes: int, images: Images, labels: Labels
) -> Iterator[Raw]:
    """Open the images and labels of a `part`, ``"train"`` or ``"test"``, and check that they match.

    Raises
    ------
    DataError
        If a file is not IDX as described, the counts differ, or a label is out of range.
    """
    with idx.IdxFile(folder / f"{part}_images", (3, 4)) as file:
        opened = RawImages(file, images)
        found = read_labels(folder / f"{part}_labels", classes, labels)
        if opened.shape[0] != len(found):
            raise DataError(
                f"{folder}: {opened.shape[0]:,} {part} images, but {len(found):,} {part} labels; "
                "both files must come from the same data set"
            )
        yield Raw(opened, found)


def read_labels(path: Path, classes: int, settings: Labels) -> NDArray[np.uint8]:
    """Return labels of 0 to ``classes - 1``, as uint8 (n,).

    Raises
    ------
    DataError
        If the file is not IDX as described, or a label is out of range.
    """
    labels = _read_column(path, settings.column, "labels").astype(np.int64) - settings.offset
    wrong = (labels < 0) | (labels >= classes)
    if wrong.any():
        first = int(np.argmax(wrong))
        raise DataError(
            f"{path}: label {labels[first] + settings.offset} at index {first}, expected "
            f"{settings.offset} to {classes - 1 + settings.offset}; fix the file, or the data "
            "set's classes or preprocess.labels.offset in params.yaml"
        )
    return labels.astype(np.uint8)


def read_writers(path: Path, labels: NDArray[np.uint8], settings: Writers) -> NDArray[np.int64]:
    """Return who wrote each training image, as int64 (n,).

    Raises
    ------
    DataError
        If the file is not IDX as described, or does not fit the images with these `labels`.
    """
    writers = _read_column(path, settings.column, "writers").astype(np.int64)
    if len(writers) != len(labels):
        raise DataError(
            f"{path}: names the writers of {len(writers):,} images, and there are {len(labels):,} "
            "training images; both files must come from the same data set"
        )
    if settings.label_column is not None:
        theirs = _read_column(path, settings.label_column, "labels")
        if (theirs != labels).any():
            first = int(np.argmax(theirs != labels))
            raise DataError(
                f"{path}: has the label {theirs[first]} at index {first}, and the training image "
                f"there {labels[first]}: these are the writers of other images, or in another order"
            )
    return writers


def _read_column(path: Path, column: int | None, what: str) -> NDArray[Any]:
    table = idx.read(path, (1, 2))
    if table.dtype.kind == "f":
        raise DataError(f"{path}: has floating-point {what}, expected integers")
    if table.ndim == 1 and column is None:
        return table
    columns = table.shape[1] if table.ndim == 2 else 1
    if column is None:
        raise DataError(
            f"{path}: is a table of {columns} columns; say which one has the {what}: set "
            f"preprocess.{what}.column of the data set, counted from 0"
        )
    if table.ndim == 1 or column >= columns:
        raise DataError(
            f"{path}: has {columns} column{'s' if columns > 1 else ''}, and preprocess.{what}."
            f"column is {column}, counted from 0"
        )
    return table[:, column]
