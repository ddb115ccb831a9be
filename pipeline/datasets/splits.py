"""Prepared splits on disk: uint8 .npy files of images (n, height, width, channels) and labels."""

import math
import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from tokenize import TokenError
from typing import Annotated, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import PlainValidator

from pipeline.core.errors import DataError, one_line
from pipeline.core.files import whole_file
from pipeline.core.params import shortened

MOST_CLASSES = 256  # a label is one byte


def _classes(value: object) -> int | list[str]:
    if isinstance(value, int) and not isinstance(value, bool) and 2 <= value <= MOST_CLASSES:
        return value
    if isinstance(value, list) and 2 <= len(value) <= MOST_CLASSES:
        if all(isinstance(name, str) and name for name in value):
            if len(set(value)) == len(value):
                return value
            raise ValueError("expected the name of each class once")
        raise ValueError("expected a name for each class; put numbers into quotes")
    raise ValueError(
        f"expected the number of classes, 2 to {MOST_CLASSES}, or a list of as many names, "
        f"received {shortened(value)}"
    )


# How many classes there are, or their names.
Classes = Annotated[int | list[str], PlainValidator(_classes)]

REMEDY = "run the preprocess stage again"
# NumPy reads a header with Python's own parser, whose errors it lets through.
HEADER_ERRORS = (
    ValueError, SyntaxError, TokenError, TypeError, RecursionError, MemoryError, UserWarning,
)  # fmt: skip


def class_names(classes: int | list[str]) -> list[str]:
    """Return the name of each class; it is the label itself if only their number is given."""
    return classes if isinstance(classes, list) else [str(label) for label in range(classes)]


class Split(NamedTuple):
    """Images of shape (n, height, width, channels) and their labels of shape (n,), both uint8."""

    images: NDArray[np.uint8]
    labels: NDArray[np.uint8]


@contextmanager
def split_writer(
    folder: Path, count: int, image_shape: tuple[int, ...]
) -> Iterator[Callable[[Split], None]]:
    """Open a split for writing piece by piece; it appears if the block ends without an error.

    Parameters
    ----------
    folder : Path
    count : int
        The number of images in all pieces.
    image_shape : tuple of int
        (height, width, channels).

    Yields
    ------
    callable
        Appends a piece.

    Raises
    ------
    OutputError
        If a file cannot be written.
    """
    shapes = {"images": (count, *image_shape), "labels": (count,)}
    with ExitStack() as stack:
        files = {name: stack.enter_context(whole_file(folder / f"{name}.npy")) for name in shapes}
        for name, shape in shapes.items():
            header = {"descr": "|u1", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(files[name], header)

        def write(piece: Split) -> None:
            for name, array in piece._asdict().items():
                files[name].write(np.ascontiguousarray(array).data)

        yield write


def save_split(folder: Path, split: Split) -> None:
    """Write a split to `folder`."""
    with split_writer(folder, len(split.labels), split.images.shape[1:]) as write:
        write(split)


def map_split(folder: Path) -> Split:
    """Map a split's arrays into memory, read-only; pages are read when they are touched.

    Raises
    ------
    DataError
        If a file is missing or damaged, or the two do not match.
    """
    with SplitReader(folder) as reader:
        shapes = {"images": reader.image_shape, "labels": ()}
        if not len(reader):  # nothing can be mapped
            return Split(np.empty((0, *reader.image_shape), np.uint8), np.empty(0, np.uint8))
    return Split(
        *(
            np.memmap(
                folder / f"{name}.npy",
                np.uint8,
                "r",
                offset=reader.offsets[name],
                shape=(len(reader), *shape),
            )
            for name, shape in shapes.items()
        )
    )


class SplitReader(AbstractContextManager["SplitReader"]):
    """Reads a split piece by piece; only the requested piece is in memory.

    Mapped pages would count as this process's memory, and fail under an address-space limit.

    Parameters
    ----------
    folder : Path
        With the split's ``images.npy`` and ``labels.npy``.

    Raises
    ------
    DataError
        If a file is missing or damaged, or the two do not match.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.offsets: dict[str, int] = {}
        shapes = {}
        with _reading(folder):
            self.files = {
                name: open(folder / f"{name}.npy", "rb")  # noqa: SIM115 - closed by close()
                for name in ("images", "labels")
            }
        try:
            for name in self.files:
                shapes[name] = self._read_header(name)
        except DataError:
            self.close()
            raise
        self.image_shape = shapes["images"][1:]
        if len(shapes["images"]) != 4 or shapes["labels"] != shapes["images"][:1]:
            self.close()
            raise DataError(
                f"{folder}: expected images (n, height, width, channels) and labels (n,), received "
                f"{shapes['images']} and {shapes['labels']}; {REMEDY}"
            )

    def __len__(self) -> int:
        return self.count

    def read(self, start: int, stop: int) -> Split:
        """Return images and labels `start` to `stop`, the last one excluded."""
        stop = min(stop, self.count)
        return Split(
            self._read("images", start, stop, self.image_shape), self._read("labels", start, stop)
        )

    def _read_header(self, name: str) -> tuple[int, ...]:
        file, path = self.files[name], self.folder / f"{name}.npy"
        with _reading(self.folder), warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)  # about headers of Python 2
            try:
                version = np.lib.format.read_magic(file)
                shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
            except HEADER_ERRORS as error:
                reason = one_line(error)
                raise DataError(f"{path}: is not an .npy array ({reason}); {REMEDY}") from error
        if version != (1, 0) or fortran_order or dtype != np.uint8:
            raise DataError(f"{path}: is not an .npy array of uint8 in C order; {REMEDY}")
        self.offsets[name] = file.tell()
        size = path.stat().st_size - file.tell()
        if size != math.prod(shape) or min(shape, default=0) < 0:
            raise DataError(
                f"{path}: expected uint8 of shape {shape}, received {size:,} bytes; {REMEDY}"
            )
        self.count = shape[0] if shape else 0
        return shape

    def _read(
        self, name: str, start: int, stop: int, shape: tuple[int, ...] = ()
    ) -> NDArray[np.uint8]:
        array = np.empty((stop - start, *shape), np.uint8)
        file = self.files[name]
        with _reading(self.folder):
            file.seek(self.offsets[name] + start * int(np.prod(shape, dtype=np.int64)))
            received = file.readinto(array.data.cast("B")) if array.size else 0
        if received != array.nbytes:
            raise DataError(f"{self.folder / name}.npy: ended early; {REMEDY}")
        return array

    def close(self) -> None:
        """Close both files."""
        for file in self.files.values():
            file.close()

    def __exit__(self, *_: object) -> None:
        self.close()


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror}); {REMEDY}") from error
