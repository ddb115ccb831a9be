from unittest.mock import patch

import pytest

from benchmarks import levers
from benchmarks.processes import ROOT
from pipeline.network.device import Device


@pytest.mark.parametrize("has_bfloat16", [False, True])
@pytest.mark.parametrize(("variant", "lrn"), [("alexnet_norm", 2), ("alexnet_dropout", 0)])
def test_only_measures_that_affect_a_variant_are_turned_off(
    variant: str, lrn: int, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LRN's measures need a variant with LRN, and the gradient's a device with bfloat16."""
    monkeypatch.chdir(ROOT)
    cpu = Device("CPU", "Some CPU", has_bfloat16)
    monkeypatch.setattr(levers, "find_device", lambda: cpu)
    names = [entry.name for entry in levers.entries(variant)]
    assert (f"without {levers.GRADIENT}" in names) == has_bfloat16
    assert sum("LRN" in name for name in names) == lrn
    assert len(names) == len(levers.TURN_OFF) - 3 + lrn + has_bfloat16
    assert names[0] == "this project"


def test_measures_are_where_the_benchmark_turns_them_off() -> None:
    """Each one patches a name that the pipeline has: a missing one would raise AttributeError."""
    try:
        for turn_off in levers.TURN_OFF.values():
            turn_off()
    finally:
        patch.stopall()
