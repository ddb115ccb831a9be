"""The IDX file format of MNIST, read strictly and written plainly.

An IDX file is two zero bytes, a type byte, a byte with the number of dimensions, each dimension as
a big-endian 32-bit integer, and the elements in row-major order. Source: the description on the
MNIST database's page, http://yann.lecun.com/exdb/mnist/.
"""

import gzip
import math
import struct
import zlib
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataError
from pipeline.files import whole_file

UNSIGNED_BYTE = 0x08
GZIP_MAGIC = b"\x1f\x8b"
READ_BYTES = 1 << 20


def read(path: Path, n_dimensions: int) -> NDArray[np.uint8]:
    """Read an IDX file of unsigned bytes, plain or gzip-compressed.

    Parameters
    ----------
    path : Path
        The file; whether it is compressed is told from its first bytes.
    n_dimensions : int
        3 for images (n, height, width), 1 for labels (n,).

    Returns
    -------
    array of uint8
        With `n_dimensions` dimensions, each at least 1.

    Raises
    ------
    DataError
        If the file is missing or truncated, its magic number, element type or number of
        dimensions is another one, or its length is not what its header promises.
    """
    try:
        with open(path, "rb") as file:
            compressed = file.read(2) == GZIP_MAGIC
            file.seek(0)
            if compressed:
                with gzip.GzipFile(fileobj=file) as unpacked:
                    return _parse(path, unpacked, n_dimensions)  # type: ignore[arg-type]
            return _parse(path, file, n_dimensions)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise DataError(
            f"{path}: truncated or damaged gzip data ({error}); delete it and download it again"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror or error})") from error


def _parse(path: Path, file: BinaryIO, n_dimensions: int) -> NDArray[np.uint8]:
    magic = file.read(4)
    expected = bytes([0, 0, UNSIGNED_BYTE, n_dimensions])
    if magic != expected:
        raise DataError(
            f"{path}: wrong magic number: expected {expected.hex()} (unsigned bytes, "
            f"{n_dimensions} dimensions), received {magic.hex() or 'an empty file'}; "
            "is it another kind of file, or labels in the place of images?"
        )
    sizes = file.read(4 * n_dimensions)
    if len(sizes) < 4 * n_dimensions:
        raise DataError(f"{path}: the header ends after {len(sizes)} of {4 * n_dimensions} bytes")
    shape = struct.unpack(f">{n_dimensions}I", sizes)
    if min(shape) < 1:
        raise DataError(f"{path}: each dimension must be at least 1, received {shape}")
    length = math.prod(shape)
    body = _read_at_most(file, length + 1)
    if len(body) != length:
        received = "more" if len(body) > length else f"{len(body):,}"
        raise DataError(
            f"{path}: the header promises {' × '.join(map(str, shape))} = {length:,} bytes, "
            f"the body has {received}; the file is damaged or of another format"
        )
    return np.frombuffer(body, np.uint8).reshape(shape)


def _read_at_most(file: BinaryIO, length: int) -> bytearray:
    """Read up to `length` bytes in pieces, so that memory follows the file and not its header."""
    body = bytearray()
    while len(body) < length and (piece := file.read(min(READ_BYTES, length - len(body)))):
        body += piece
    return body


def write(path: Path, array: NDArray[np.uint8]) -> None:
    """Write an array of unsigned bytes as a plain IDX file."""
    with whole_file(path) as file:
        file.write(bytes([0, 0, UNSIGNED_BYTE, array.ndim]))
        file.write(struct.pack(f">{array.ndim}I", *array.shape))
        file.write(np.ascontiguousarray(array).tobytes())
