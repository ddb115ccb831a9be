import pytest

from benchmarks import levers
from pipeline.device import Device
from tests.conftest import ROOT


@pytest.mark.parametrize("has_bfloat16", [False, True])
@pytest.mark.parametrize(("variant", "lrn"), [("alexnet_norm", 2), ("alexnet_dropout", 0)])
def test_only_what_a_variant_has_is_taken_away(
    variant: str, lrn: int, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measures for LRN are taken away where there is LRN, one for bfloat16 where there is bfloat16."""
    monkeypatch.chdir(ROOT)
    cpu = Device("CPU", "Some CPU", has_bfloat16)
    monkeypatch.setattr(levers, "find_device", lambda: cpu)
    names = [entry.name for entry in levers.entries(variant)]
    assert (f"without {levers.GRADIENT}" in names) == has_bfloat16
    assert sum("LRN" in name for name in names) == lrn
    assert len(names) == len(levers.TAKEN_AWAY) - 3 + lrn + has_bfloat16
    assert names[0] == "this project"
