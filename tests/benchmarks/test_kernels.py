import pytest

from benchmarks import kernels
from benchmarks.tables import kernels as table
from tests.conftest import ROOT


@pytest.mark.slow
def test_a_profile_names_the_kernels_that_take_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shares of all kernels make a whole, and convolutions and products of matrices are among them."""
    monkeypatch.chdir(ROOT)
    shares = kernels.measure("lenet5", "train")
    assert sum(shares.values()) == pytest.approx(1, abs=0.01)
    assert any("Conv2DBackpropFilter" in kind for kind in shares)
    assert any("MatMul" in kind for kind in shares)
    assert list(shares.values()) == sorted(shares.values(), reverse=True)


def test_small_shares_are_left_out_of_the_table() -> None:
    """The table shows what takes a hundredth or more, without the underscore of TensorFlow's own."""
    text = table({"net": {"infer": {"_MklConv": 0.985, "Relu": 0.01, "Cast": 0.005}}})
    assert text.splitlines()[-1] == "| `net` | inference | MklConv 98.5%, Relu 1.0% |"
