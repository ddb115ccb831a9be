"""The IDX file format of MNIST, read strictly and written plainly.

An IDX file is two zero bytes, a type byte, a byte with the number of dimensions, each dimension as
a big-endian 32-bit integer, and the elements in row-major order, big-endian too. Source: the
description on the MNIST database's page, http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import lzma
import math
import struct
import zlib
from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.files import whole_file

# What the type byte means.
TYPES: dict[int, np.dtype[Any]] = {
    0x08: np.dtype(">u1"), 0x09: np.dtype(">i1"), 0x0B: np.dtype(">i2"), 0x0C: np.dtype(">i4"),
    0x0D: np.dtype(">f4"), 0x0E: np.dtype(">f8"),
}  # fmt: skip
UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"
XZ_MAGIC = b"\xfd7zXZ\x00"
ZIP_MAGIC = b"PK\x03\x04"
READ_BYTES = 1 << 20


class IdxFile(AbstractContextManager["IdxFile"]):
    """An IDX file, plain or compressed by gzip or xz, read from its begin to its end.

    Memory follows what is asked for, not what the header promises.

    Parameters
    ----------
    path : Path
        How it is compressed is told from its first bytes.
    dimensions : collection of int
        The numbers of dimensions that are expected: 3 for images (n, height, width), 1 for labels.

    Attributes
    ----------
    shape : tuple of int
        Each at least 1.
    dtype : dtype
        Of the elements, as in `TYPES`.

    Raises
    ------
    DataError
        If the file is missing or truncated, its type is unknown, or its number of dimensions is
        not an expected one.
    """

    def __init__(self, path: Path, dimensions: Collection[int]) -> None:
        self.path = path
        with ExitStack() as stack:
            with self._reading():
                file: IO[bytes] = stack.enter_context(open(path, "rb"))
                magic = file.read(len(XZ_MAGIC))
                file.seek(0)
                if magic.startswith(ZIP_MAGIC):
                    raise DataError(
                        f"{path}: is a zip archive; name the file in it as its `member` in "
                        "params.yaml, or unpack it"
                    )
                if magic.startswith(GZIP_MAGIC):
                    file = stack.enter_context(cast(IO[bytes], gzip.open(file)))  # noqa: SIM115
                elif magic == XZ_MAGIC:
                    file = stack.enter_context(cast(IO[bytes], lzma.open(file)))  # noqa: SIM115
                self.file = file
                self.dtype, self.shape = self._read_header(dimensions)
            self.stack = stack.pop_all()

    def blocks(self) -> Iterator[NDArray[Any]]:
        """Yield the array in blocks of about a megabyte along its first dimension.

        Raises
        ------
        DataError
            If the body is shorter or longer than the header promises.
        """
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        length = row * self.shape[0]
        rows_at_once = max(1, READ_BYTES // row)
        read = 0
        for first in range(0, self.shape[0], rows_at_once):
            rows = min(rows_at_once, self.shape[0] - first)
            body = self._read_at_most(rows * row)
            read += len(body)
            if len(body) < rows * row:
                raise self._wrong_length(length, f"{read:,}")
            yield np.frombuffer(body, self.dtype).reshape(rows, *self.shape[1:])
        if self._read_at_most(1):
            raise self._wrong_length(length, "more")

    def _read_header(self, dimensions: Collection[int]) -> tuple[np.dtype[Any], tuple[int, ...]]:
        magic = self.file.read(4)
        expected = " or ".join(map(str, sorted(dimensions)))
        if len(magic) < 4 or magic[:2] != b"\0\0" or magic[2] not in TYPES:
            known = ", ".join(f"{code:02x}" for code in TYPES)
            raise DataError(
                f"{self.path}: is not an IDX file: expected 0000, a type of {known}, and "
                f"{expected} dimensions, received {magic.hex() or 'an empty file'}"
            )
        if magic[3] not in dimensions:
            raise DataError(
                f"{self.path}: expected {expected} dimensions, received {magic[3]}; are labels in "
                "the place of images, or is a setting of the data set missing in params.yaml?"
            )
        sizes = self.file.read(4 * magic[3])
        if len(sizes) < 4 * magic[3]:
            raise DataError(
                f"{self.path}: the header ends after {len(sizes)} of {4 * magic[3]} bytes"
            )
        shape = struct.unpack(f">{magic[3]}I", sizes)
        if min(shape) < 1:
            raise DataError(f"{self.path}: each dimension must be at least 1, received {shape}")
        return TYPES[magic[2]], shape

    def _read_at_most(self, length: int) -> bytearray:
        """Read up to `length` bytes in pieces, so that memory follows the file."""
        body = bytearray()
        with self._reading():
            while len(body) < length and (
                piece := self.file.read(min(READ_BYTES, length - len(body)))
            ):
                body += piece
        return body

    def _wrong_length(self, length: int, received: str) -> DataError:
        wide = f" × {self.dtype.itemsize} bytes" if self.dtype.itemsize > 1 else ""
        return DataError(
            f"{self.path}: the header promises {' × '.join(map(str, self.shape))}{wide} = "
            f"{length:,} bytes, the body has {received}; the file is damaged or of another format"
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
            raise DataError(
                f"{self.path}: truncated or damaged compressed data ({error}); delete it and "
                "download it again"
            ) from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def read(path: Path, dimensions: Collection[int]) -> NDArray[Any]:
    """Return the whole array of an `IdxFile`."""
    with IdxFile(path, dimensions) as file:
        return np.concatenate(list(file.blocks()))


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of unsigned bytes as a plain IDX file."""
    with whole_file(path) as file:
        file.write(bytes([0, 0, UNSIGNED_BYTE, array.ndim]))
        file.write(struct.pack(f">{array.ndim}I", *array.shape))
        file.write(np.ascontiguousarray(array).tobytes())
