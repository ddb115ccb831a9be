import pytest

from benchmarks import checkpoints
from benchmarks.tables import checkpoints as table


@pytest.mark.slow
def test_saving_takes_a_share_of_training() -> None:
    """A real training saves at least once, at its end."""
    figures = checkpoints.measure("lenet5")
    assert figures["saves"] >= 1
    assert 0 < figures["saving_seconds"] < figures["seconds"]
    share = figures["saving_seconds"] / figures["seconds"]
    assert figures["share"] == pytest.approx(share, rel=0.2)


def test_the_share_is_a_percentage_in_the_table() -> None:
    """The table has a row for each variant."""
    figures = {"net": {"seconds": 100.0, "saves": 2, "saving_seconds": 1.0, "share": 0.01}}
    assert table(figures).splitlines()[-1] == "| `net` | 100.0 s | 2 | 1.00 s | 1.00% |"
