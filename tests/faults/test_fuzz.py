"""Any bytes give a result or a PipelineError, in bounded time and memory.

The variable FUZZ is how many inputs each reader gets; `make soak` sets more.
"""

import contextlib
import os
import resource
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline.core.errors import PipelineError
from tests.faults.readers import Reader, prepare

pytestmark = [pytest.mark.faults, pytest.mark.slow]

INPUTS = int(os.environ.get("FUZZ", "200"))
LONGEST_S = 10.0
MOST_MEMORY_MB = 500
READERS = ("idx", "zip", "npy", "params", "model", "checkpoint", "predictions", "metrics", "lock")
# What gives a file its structure, tried more often than by chance.
TOKENS = (b"[", b"{", b"}", b": ", b"- ", b"&a ", b"*a", b"!!int ", b'"', b"\n", b"\x00", b"\xff" * 4,
          b"9" * 20, b"-1", b"1e999", b"null", b"\x1f\x8b", b",")  # fmt: skip

Edit = tuple[float, int, bytes]
edits = st.lists(
    st.tuples(
        st.floats(0, 1),
        st.integers(0, 12),
        st.binary(max_size=4) | st.sampled_from(TOKENS),
    ),
    min_size=1,
    max_size=6,
)


def edit(content: bytes, changes: list[Edit]) -> bytes:
    """Replace, at each place given as a share of the whole, some bytes by others."""
    for place, length, new in changes:
        begin = int(place * len(content))
        content = content[:begin] + new + content[begin + length :]
    return content


def peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000


def try_reader(reader: Reader, folder: Path, content: bytes) -> None:
    begin = time.process_time()  # not the wall clock: the machine may be busy
    with contextlib.suppress(PipelineError):
        reader(folder, content)
    assert time.process_time() - begin < LONGEST_S


@pytest.fixture(scope="module")
def readers(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, dict[str, tuple[Reader, list[bytes]]]]:
    folder = tmp_path_factory.mktemp("fuzz")
    return folder, prepare(folder)


@pytest.mark.parametrize("name", READERS)
def test_any_bytes_give_a_result_or_a_pipeline_error(
    name: str, readers: tuple[Path, dict[str, tuple[Reader, list[bytes]]]]
) -> None:
    """Valid files with random edits, and random bytes, give a result or a PipelineError."""
    folder, table = readers
    reader, good = table[name]
    begin = peak_mb()

    @settings(
        max_examples=INPUTS, deadline=None, database=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(st.sampled_from(good), edits, st.binary(max_size=200), st.booleans())
    def fuzz(start: bytes, changes: list[Edit], random: bytes, is_random: bool) -> None:
        try_reader(reader, folder, random if is_random else edit(start, changes))

    for content in good:
        try_reader(reader, folder, content)
    fuzz()
    assert peak_mb() - begin < MOST_MEMORY_MB


def test_the_readers_accept_valid_files(
    readers: tuple[Path, dict[str, tuple[Reader, list[bytes]]]],
) -> None:
    """The valid files that fuzzing starts from are read, so it reaches behind the headers."""
    folder, table = readers
    assert tuple(table) == READERS
    for reader, good in table.values():
        reader(folder, good[0])
