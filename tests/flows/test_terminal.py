import io
import re

import pytest

from dvc_flow import terminal
from dvc_flow.settings import read_settings
from dvc_flow.terminal import Terminal, last_progress
from tests.helpers import ROOT

STAGE = "train mnist/lenet5"
PROGRESS = re.compile(read_settings(ROOT).progress)
LINE = f"{STAGE}: 640/3,124 steps (20%), 212 images/s, 12 s left"


class FakeTerminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_progress_is_read_from_a_line() -> None:
    """The share in a progress line is found; another line has none."""
    assert last_progress(PROGRESS, ["no progress", LINE, "none"]) == (20, LINE[len(STAGE) + 2 :])
    assert last_progress(PROGRESS, ["train: of it (104%)"]) == (100, "of it (104%)")
    assert last_progress(PROGRESS, ["Running stage 'train':"]) is None


def test_a_log_has_a_line_for_begin_and_end() -> None:
    """Each stage is told when it begins and when it ends, with its time, and why it failed."""
    stream = io.StringIO()
    with Terminal(PROGRESS, stream) as shown:
        shown.begin("train")
        shown.lines("train", [LINE])
        shown.end("train", "failed", 12.34, "exited with 1", ["its last", "lines"])
        shown.end("report", "cached")
        shown.say("2 stages: 1 cached; failed: train")
    assert stream.getvalue().splitlines() == [
        "running              train",
        "failed       12.3 s  train: exited with 1",
        "  | its last",
        "  | lines",
        "cached               report",
        "2 stages: 1 cached; failed: train",
    ]


def test_a_log_has_a_line_of_progress_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Progress is told at an interval, without the stage's name twice."""
    monkeypatch.setattr(terminal, "LOG_INTERVAL_S", 0.0)
    stream = io.StringIO()
    with Terminal(PROGRESS, stream) as shown:
        shown.begin("train@mnist-lenet5")
        shown.lines("train@mnist-lenet5", [LINE])
        shown.lines("train@mnist-lenet5", ["no progress"])
    assert stream.getvalue().splitlines()[1:] == [
        "running              train@mnist-lenet5: 640/3,124 steps (20%), 212 images/s, 12 s left"
    ]


def test_a_terminal_has_live_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A running stage has one line with its state, bar, speed and time left."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    stream = FakeTerminal()
    with Terminal(PROGRESS, stream) as shown:
        shown.begin("train")
        shown.lines("train", [LINE])
        shown.live.refresh()
        live = stream.getvalue()
        shown.end("train", "completed", 12.34)
    assert "212 images/s" in live
    assert "12.3 s  train" in stream.getvalue()
    assert not shown.live.tasks
