"""The IDX file format of MNIST, read strictly and written plainly.

An IDX file is two zero bytes, a type byte, a byte with the number of dimensions, each dimension as
a big-endian 32-bit integer, and the elements in row-major order. Source: the description on the
MNIST database's page, http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import math
import struct
import zlib
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import IO, cast

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import DataError
from pipeline.core.files import whole_file

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"
READ_BYTES = 1 << 20


class IdxFile(AbstractContextManager["IdxFile"]):
    """An IDX file of unsigned bytes, plain or gzip-compressed, read from its begin to its end.

    Memory follows what is asked for, not what the header promises.

    Parameters
    ----------
    path : Path
        Whether it is compressed is told from its first bytes.
    n_dimensions : int
        3 for images (n, height, width), 1 for labels (n,).

    Attributes
    ----------
    shape : tuple of int
        Each at least 1.

    Raises
    ------
    DataError
        If the file is missing or truncated, or its magic number, element type or number of
        dimensions is another one.
    """

    def __init__(self, path: Path, n_dimensions: int) -> None:
        self.path = path
        with ExitStack() as stack:
            with self._reading():
                file: IO[bytes] = stack.enter_context(open(path, "rb"))
                compressed = file.read(2) == GZIP_MAGIC
                file.seek(0)
                if compressed:
                    file = stack.enter_context(cast(IO[bytes], gzip.open(file)))  # noqa: SIM115
                self.file = file
                self.shape = self._read_header(n_dimensions)
            self.stack = stack.pop_all()

    def blocks(self) -> Iterator[NDArray[np.uint8]]:
        """Yield the array in blocks of about a megabyte along its first dimension.

        Raises
        ------
        DataError
            If the body is shorter or longer than the header promises.
        """
        row = math.prod(self.shape[1:])
        length = row * self.shape[0]
        rows_at_once = max(1, READ_BYTES // row)
        read = 0
        for first in range(0, self.shape[0], rows_at_once):
            rows = min(rows_at_once, self.shape[0] - first)
            body = self._read_at_most(rows * row)
            read += len(body)
            if len(body) < rows * row:
                raise self._wrong_length(length, f"{read:,}")
            yield np.frombuffer(body, np.uint8).reshape(rows, *self.shape[1:])
        if self._read_at_most(1):
            raise self._wrong_length(length, "more")

    def _read_header(self, n_dimensions: int) -> tuple[int, ...]:
        magic = self.file.read(4)
        expected = bytes([0, 0, UNSIGNED_BYTE, n_dimensions])
        if magic != expected:
            raise DataError(
                f"{self.path}: wrong magic number: expected {expected.hex()} (unsigned bytes, "
                f"{n_dimensions} dimensions), received {magic.hex() or 'an empty file'}; "
                "is it another kind of file, or labels in the place of images?"
            )
        sizes = self.file.read(4 * n_dimensions)
        if len(sizes) < 4 * n_dimensions:
            raise DataError(
                f"{self.path}: the header ends after {len(sizes)} of {4 * n_dimensions} bytes"
            )
        shape = struct.unpack(f">{n_dimensions}I", sizes)
        if min(shape) < 1:
            raise DataError(f"{self.path}: each dimension must be at least 1, received {shape}")
        return shape

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
        return DataError(
            f"{self.path}: the header promises {' × '.join(map(str, self.shape))} = {length:,} "
            f"bytes, the body has {received}; the file is damaged or of another format"
        )

    @contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise DataError(
                f"{self.path}: truncated or damaged gzip data ({error}); delete it and download "
                "it again"
            ) from error
        except OSError as error:
            raise DataError(f"{self.path}: cannot be read ({error.strerror or error})") from error

    def __exit__(self, *_: object) -> None:
        self.stack.close()


def read(path: Path, n_dimensions: int) -> NDArray[np.uint8]:
    """Return the whole array of an `IdxFile`."""
    with IdxFile(path, n_dimensions) as file:
        return np.concatenate(list(file.blocks()))


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of unsigned bytes as a plain IDX file."""
    with whole_file(path) as file:
        file.write(bytes([0, 0, UNSIGNED_BYTE, array.ndim]))
        file.write(struct.pack(f">{array.ndim}I", *array.shape))
        file.write(np.ascontiguousarray(array).tobytes())
