import io
from collections.abc import Callable

import pytest

from pipeline.core.progress import LOG_INTERVAL_S, Progress, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def clock(*times: float) -> Callable[[], float]:
    """Return a clock that shows `times` one after the other, then stops."""
    left = list(times)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.4, "0 s"), (59.6, "1 min 00 s"), (187, "3 min 07 s"), (7500, "2 h 05 min")],
)
def test_durations_have_two_units_at_most(seconds: float, text: str) -> None:
    """A duration is given in its two largest units."""
    assert duration(seconds) == text


def test_status_gives_done_of_planned_speed_and_time_left() -> None:
    """The status line has the steps done and planned, images per second, and the time left."""
    progress = Progress(
        "train", 100, "steps", rate_unit="images", rate_per_unit=64, stream=io.StringIO(),
        clock=clock(0.0, 5.0, 10.0),
    )  # fmt: skip
    progress.advance(20, "loss 0.5")
    assert progress.status() == "20/100 steps (20%), 128 images/s, 40 s left, loss 0.5"


def test_a_log_gets_a_line_at_most_once_an_interval() -> None:
    """A log gets at most one line per interval, and one at the end."""
    log = io.StringIO()
    times = iter(range(100_000))
    with Progress(
        "train", 60, "steps", rate_unit="images", stream=log, clock=lambda: next(times) / 10
    ) as progress:
        for _ in range(60):
            progress.advance(1)
    lines = log.getvalue().splitlines()
    assert 1 <= len(lines) <= 2 + 60 / LOG_INTERVAL_S
    assert lines[-1].startswith("train: 60/60 steps (100%)")


def test_a_terminal_gets_a_bar() -> None:
    """In a terminal, progress is drawn as a bar."""
    terminal = Terminal()
    with Progress("train", 2, "steps", rate_unit="images", stream=terminal) as progress:
        progress.advance(2)
    assert "train |" in terminal.getvalue()
    assert "2/2 steps (100%)" in terminal.getvalue()


def test_failed_work_is_not_logged_as_done() -> None:
    """Work that ends with an error gets no final line."""
    log = io.StringIO()
    with (
        pytest.raises(ZeroDivisionError),
        Progress("train", 2, "steps", rate_unit="images", stream=log),
    ):
        _ = 1 / 0
    assert log.getvalue() == ""


def test_skipped_work_does_not_count_towards_the_speed() -> None:
    """Steps of an earlier run count as done, but not towards the speed and the time left."""
    progress = Progress(
        "train", 100, "steps", rate_unit="images", rate_per_unit=64, stream=io.StringIO(),
        clock=clock(0.0, 5.0, 10.0),
    )  # fmt: skip
    progress.skip(60)
    progress.advance(20)
    assert progress.status() == "80/100 steps (80%), 128 images/s, 10 s left"
