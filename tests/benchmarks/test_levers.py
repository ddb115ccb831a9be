import pytest

from benchmarks import levers
from tests.conftest import ROOT


@pytest.mark.parametrize(("variant", "lrn"), [("alexnet_norm", 2), ("alexnet_dropout", 0)])
def test_only_what_a_variant_has_is_taken_away(
    variant: str, lrn: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both measures for LRN are taken away where there is LRN; the others everywhere."""
    monkeypatch.chdir(ROOT)
    names = [entry.name for entry in levers.entries(variant)]
    assert sum("LRN" in name for name in names) == lrn
    assert len(names) == len(levers.TAKEN_AWAY) - 2 + lrn
    assert names[0] == "this project"
