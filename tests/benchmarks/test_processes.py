import sys

import numpy as np
import pytest

from benchmarks.processes import run


def test_the_peak_is_the_commands_own() -> None:
    """Memory of the measuring process does not count, memory of the command does."""
    held = np.ones(300_000_000, np.uint8)
    small = run([sys.executable, "-c", "print('done')"])
    large = run([sys.executable, "-c", "held = b'x' * 200_000_000"])
    assert small.output == "done\n"
    assert small.peak_memory_mb < 100
    assert 200 < large.peak_memory_mb < 300
    assert held.all()


def test_a_failed_command_is_an_error_with_its_output() -> None:
    """The error has the command, its exit status and its output."""
    with pytest.raises(RuntimeError, match=r"(?s)exited with 3:\nno such thing"):
        run([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])
