import gzip
import lzma
import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from pipeline.core.errors import DataError
from pipeline.datasets import idx
from tests.helpers import IDX_TYPES, write_idx

# Without mtime=0 gzip writes the time, and the tests get other names in each process.
compress = partial(gzip.compress, mtime=0)
PACKING: dict[str, Callable[[bytes], bytes]] = {
    "plain": lambda content: content,
    "gzip": compress,
    "xz": lzma.compress,
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("idx")


@given(
    array=arrays.arrays(np.uint8, arrays.array_shapes(min_dims=1, max_dims=4)),
    packing=st.sampled_from(list(PACKING)),
)
def test_what_is_written_is_read(folder: Path, array: np.ndarray, packing: str) -> None:
    """Any array is read back as it was written, plain or compressed."""
    path = folder / "file"
    idx.write(path, array)
    path.write_bytes(PACKING[packing](path.read_bytes()))
    np.testing.assert_array_equal(idx.read(path, (array.ndim,)), array)


@pytest.mark.parametrize("kind", IDX_TYPES)
def test_every_type_is_read(tmp_path: Path, kind: str) -> None:
    """Bytes, integers and floats of every width are read with their values and as their type."""
    values = np.array([[-128, -1, 0, 1], [2, 3, 100, 127]]).astype(kind)
    write_idx(tmp_path / "file", values)
    read = idx.read(tmp_path / "file", (2,))
    np.testing.assert_array_equal(read, values)
    assert read.dtype == values.dtype


def test_a_file_larger_than_a_block_is_read_in_blocks(tmp_path: Path) -> None:
    """Blocks have about a megabyte, however wide the elements, and make the whole."""
    values = np.random.default_rng(0).integers(-(2**31), 2**31, (1000, 30, 30), dtype=np.int32)
    write_idx(tmp_path / "file", values)
    with idx.IdxFile(tmp_path / "file", (3,)) as file:
        blocks = list(file.blocks())
    assert max(block.nbytes for block in blocks) <= idx.READ_BYTES
    np.testing.assert_array_equal(np.concatenate(blocks), values)


@pytest.mark.parametrize("dimensions", [1, 2, 3, 4])
def test_only_expected_dimensions_are_accepted(tmp_path: Path, dimensions: int) -> None:
    """Of several numbers of dimensions that are accepted each one is, and no other."""
    write_idx(tmp_path / "file", np.zeros((2,) * dimensions, np.uint8))
    if dimensions in (1, 2):
        assert idx.read(tmp_path / "file", (1, 2)).ndim == dimensions
        return
    with pytest.raises(DataError, match=f"expected 1 or 2 dimensions, received {dimensions}; are"):
        idx.read(tmp_path / "file", (1, 2))


@given(content=st.binary(max_size=64))
def test_any_bytes_give_an_array_or_a_data_error(folder: Path, content: bytes) -> None:
    """Reading arbitrary bytes gives an array or a DataError, and nothing else."""
    path = folder / "any"
    path.write_bytes(content)
    try:
        assert idx.read(path, (1,)).dtype in idx.TYPES.values()
    except DataError as error:
        assert str(path) in str(error)


def header(*sizes: int, kind: int = 8) -> bytes:
    return bytes([0, 0, kind, len(sizes)]) + struct.pack(f">{len(sizes)}I", *sizes)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(2, 3, 3) + bytes(18), "expected 1 dimensions, received 3; are labels in the place"),
        (header(4, kind=0x0A) + bytes(16), "is not an IDX file: .* received 00000a01"),
        (b"\x01" + header(4)[1:] + bytes(4), "a type of 08, 09, 0b, .* received 01000801"),
        (b"", "received an empty file"),
        (header(4)[:6], "the header ends after 2 of 4 bytes"),
        (header(4) + bytes(3), "promises 4 = 4 bytes, the body has 3"),
        (header(4, kind=0x0C) + bytes(15), "promises 4 × 4 bytes = 16 bytes, the body has 15"),
        (header(4) + bytes(5), "the body has more"),
        (header(0), "each dimension must be at least 1"),
        (compress(header(400) + bytes(range(200)) * 2)[:-12], "truncated or damaged compressed"),
        (compress(header(4) + bytes(4))[:-8] + bytes(8), "truncated or damaged compressed data"),
        (lzma.compress(header(400) + bytes(400))[:-12], "truncated or damaged compressed data"),
        (lzma.compress(header(4) + bytes(4))[:20] + bytes(40), "damaged .*; delete it and downl"),
        (header(2**32 - 1) + bytes(9), "the body has 9"),
        (b"PK\x03\x04" + bytes(40), "is a zip archive; name the file in it as its `member`"),
    ],
)
def test_damage_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    """A wrong type, header, length or number of dimensions, or damage, is reported with the file."""
    path = tmp_path / "labels"
    path.write_bytes(content)
    with pytest.raises(DataError, match=message) as error:
        idx.read(path, (1,))
    assert str(path) in str(error.value)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """If the file is missing, the error names it."""
    with pytest.raises(DataError, match=r"labels: cannot be read \(No such file"):
        idx.read(tmp_path / "labels", (1,))
