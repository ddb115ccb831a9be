import pytest

from benchmarks import throughput
from benchmarks.contender import Turns
from benchmarks.throughput import ENTRIES, Entry, count_operations, read_variant
from tests.conftest import ROOT


@pytest.fixture(autouse=True)
def _in_the_project(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@pytest.mark.parametrize(
    ("variant", "first_layer", "others"),
    [
        # conv2 … conv5, fc6 … fc8
        (
            "alexnet_norm",
            28**2 * 64 * 11**2,
            14**2 * 192 * 5**2 * 64
            + 7**2 * 9 * (384 * 192 + 256 * 384 + 256 * 256)
            + 4**2 * 256 * 1024 + 1024 * 1024 + 1024 * 10,
        ),
        (
            "alexnet_dropout",
            28**2 * 64 * 3**2,
            14**2 * 128 * 9 * 64
            + 7**2 * 9 * (256 * 128 + 256 * 256 + 128 * 256)
            + 4**2 * 128 * 1024 + 1024 * 1024 + 1024 * 10,
        ),
    ],
)  # fmt: skip
def test_operations_are_counted_by_hand(variant: str, first_layer: int, others: int) -> None:
    """A multiply-add is two operations; training makes it three times, the first layer twice."""
    placed = read_variant(variant)[1].place_layers()
    assert count_operations(placed, "infer") == 2 * (first_layer + others)
    assert count_operations(placed, "train") == 2 * (2 * first_layer + 3 * others)


def test_a_turn_takes_about_its_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn does as much as the one before has shown to fit, and a quarter before it unmeasured."""
    now = 0.0

    def work(pieces: int) -> int:
        nonlocal now
        now += pieces / 8
        return 64 * pieces

    monkeypatch.setattr("benchmarks.contender.time.perf_counter", lambda: now)
    turns = Turns(work)
    before = now
    assert turns.take(5.0) == 64 * 8
    assert now - before == 5.0 * 1.25


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "PyTorch" not in entry.name])
@pytest.mark.parametrize("task", throughput.TASKS)
def test_contenders_with_tensorflow_take_their_turns(
    entry: Entry, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them has the variant's parameters, and tells images a second."""
    monkeypatch.setattr(throughput, "TURN_SECONDS", 0.1)
    monkeypatch.setattr(throughput, "MULTIPLY_SECONDS", 0.1)
    figures = throughput.measure("lenet5", task, [entry], 2)[entry.name]
    assert figures.images_per_second.repeats == 2
    assert 10 < figures.images_per_second.low <= figures.images_per_second.median
    assert figures.gigaflops.median > 0.1


@pytest.mark.slow
def test_a_contender_that_fails_is_named() -> None:
    """A contender that ends before it answers is named, with its command."""
    with pytest.raises(RuntimeError, match=r"'false'.* ended with 1"):
        throughput.measure("lenet5", "train", [Entry("broken", ["false"])], 1)
