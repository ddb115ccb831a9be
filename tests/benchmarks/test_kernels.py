import pytest

from benchmarks import kernels
from benchmarks.processes import ROOT
from benchmarks.tables import kernels as table


@pytest.mark.slow
def test_a_profile_names_the_kernels_that_take_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares add up to one, and convolutions and matrix products are among them."""
    monkeypatch.chdir(ROOT)
    shares = kernels.measure("lenet5", "train")
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert any("Conv2DBackpropFilter" in kind for kind in shares)
    assert any("MatMul" in kind for kind in shares)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_small_shares_are_left_out_of_the_table() -> None:
    """The table shows shares of at least 1%, without the underscore of TensorFlow's own kernels."""
    text = table({"net": {"infer": {"_MklConv": 0.985, "Relu": 0.01, "Cast": 0.005}}})
    assert text.splitlines()[-1] == "| `net` | inference | MklConv 98.5%, Relu 1.0% |"
