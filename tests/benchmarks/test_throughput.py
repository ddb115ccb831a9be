import pytest

from benchmarks import throughput
from benchmarks.contender import TimedWork
from benchmarks.processes import ROOT
from benchmarks.throughput import ENTRIES, Entry, count_operations, read_variant


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
def test_operations_agree_with_a_count_by_hand(variant: str, first_layer: int, others: int) -> None:
    """A multiply-add is two operations; training triples them, but doubles the first layer's."""
    placed = read_variant(variant)[1].place_layers()
    assert count_operations(placed, "infer") == 2 * (first_layer + others)
    assert count_operations(placed, "train") == 2 * (2 * first_layer + 3 * others)


def test_work_takes_about_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The previous run says how much work fits; a quarter more goes first, untimed."""
    now = 0.0

    def work(pieces: int) -> int:
        nonlocal now
        now += pieces / 8
        return 64 * pieces

    monkeypatch.setattr("benchmarks.contender.time.perf_counter", lambda: now)
    timed = TimedWork(work)
    before = now
    assert timed.run(5.0) == 64 * 8
    assert now - before == 5.0 * 1.25


@pytest.mark.slow
@pytest.mark.parametrize("entry", [entry for entry in ENTRIES if "PyTorch" not in entry.name])
@pytest.mark.parametrize("task", throughput.TASKS)
def test_contenders_with_tensorflow_are_measured(
    entry: Entry, task: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each one has the variant's number of parameters, and gives images per second."""
    monkeypatch.setattr(throughput, "WORK_SECONDS", 0.1)
    monkeypatch.setattr(throughput, "MULTIPLY_SECONDS", 0.1)
    measured = throughput.measure("lenet5", task, [entry], 2)["contenders"][entry.name]
    speed = measured["images_per_second"]
    assert speed["repeats"] == 2
    assert 10 < speed["low"] <= speed["median"]
    assert measured["gigaflops"]["median"] > 0.1


@pytest.mark.slow
def test_a_contender_that_fails_is_named() -> None:
    """A contender that exits before it answers is an error with its command."""
    with pytest.raises(RuntimeError, match=r"'false'.* exited with 1"):
        throughput.measure("lenet5", "train", [Entry("broken", ["false"])], 1)
