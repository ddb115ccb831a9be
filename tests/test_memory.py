from pathlib import Path

import numpy as np
import pytest

from pipeline import memory
from pipeline.memory import PeakMemory


@pytest.mark.parametrize("kernel_keeps_peak", [True, False])
def test_the_peak_is_what_was_touched_over_the_baseline(kernel_keeps_peak: bool) -> None:
    """100 MB that are touched raise the peak by about 100 MB."""
    before = np.ones(20_000_000, np.uint8)
    watch = PeakMemory()
    watch.kernel_keeps_peak &= kernel_keeps_peak
    held = np.ones(100_000_000, np.uint8)
    assert 95 < watch.peak_mb() < 130
    del held, before
    assert 95 < watch.peak_mb() < 130


def test_the_peak_begins_at_zero() -> None:
    """What was in memory before does not count."""
    held = np.ones(100_000_000, np.uint8)
    assert PeakMemory().peak_mb() < 20
    del held


def test_another_system_takes_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel keeps no peak, the highest sample is the peak."""
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent/clear_refs"))
    watch = PeakMemory()
    assert not watch.kernel_keeps_peak
    assert watch.peak_mb() >= 0
