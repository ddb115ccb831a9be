import gzip
import struct
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.core.errors import DataError
from pipeline.datasets import idx

# Without mtime=0 gzip writes the time, and the tests get other names in each process.
compress = partial(gzip.compress, mtime=0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx")


@given(
    array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=3)), packed=st.booleans()
)
def test_what_is_written_is_read(folder: Path, array: np.ndarray, packed: bool) -> None:
    """Any array is read back as it was written, plain or compressed."""
    path = folder / "file"
    idx.write(path, array)
    if packed:
        path.write_bytes(compress(path.read_bytes()))
    np.testing.assert_array_equal(idx.read(path, array.ndim), array)


@given(content=st.binary(max_size=64))
def test_any_bytes_give_an_array_or_a_data_error(folder: Path, content: bytes) -> None:
    """Reading arbitrary bytes gives an array or a DataError, and nothing else."""
    path = folder / "any"
    path.write_bytes(content)
    try:
        assert idx.read(path, 1).dtype == np.uint8
    except DataError as error:
        assert str(path) in str(error)


def header(*sizes: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(2, 3, 3) + bytes(18), "wrong magic number: expected 00000801"),
        (header(4, kind=0x0D) + bytes(16), "wrong magic number: .* received 00000d01"),
        (b"", "received an empty file"),
        (header(4)[:6], "the header ends after 2 of 4 bytes"),
        (header(4) + bytes(3), "promises 4 = 4 bytes, the body has 3"),
        (header(4) + bytes(5), "the body has more"),
        (header(0), "each dimension must be at least 1"),
        (compress(header(400) + bytes(range(200)) * 2)[:-12], "truncated or damaged gzip"),
        (compress(header(4) + bytes(4))[:-8] + bytes(8), "truncated or damaged gzip"),
        (header(2**32 - 1) + bytes(9), "the body has 9"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    """A wrong magic number, type, header or length, or damaged gzip, is reported with the file."""
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        idx.read(path, 1)
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """If the file is missing, the error names it."""
    with pytest.raises(DataError, match=r"labels: cannot be read \(No such file"):
        idx.read(tmp_path / "labels", 1)
