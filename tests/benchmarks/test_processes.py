import sys

import numpy as np
import pytest

from benchmarks.processes import run


def test_the_peak_is_the_commands_own() -> None:
    """What the measuring process holds does not count, what the command holds does."""
    held = np.ones(300_000_000, np.uint8)
    small = run([sys.executable, "-c", "print('done')"])
    large = run([sys.executable, "-c", "held = b'x' * 200_000_000"])
    assert small.output == "done\n"
    assert small.peak_memory_mb < 100
    assert 200 < large.peak_memory_mb < 300
    assert held.all()


def test_a_command_that_fails_tells_what_it_wrote() -> None:
    """A failure is raised with the command, its exit status and its output."""
    with pytest.raises(RuntimeError, match=r"(?s)ended with 3:\nno such thing"):
        run([sys.executable, "-c", "import sys; print('no such thing'); sys.exit(3)"])
