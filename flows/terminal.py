"""A run in the terminal: one line per stage with its state, progress and time.

A terminal gets live lines; a log gets a line when a stage starts and ends, and occasional progress.
"""

import re
import sys
import threading
import time
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LOG_INTERVAL_S = 30.0
PROGRESS = re.compile(r"^[^:]+: (?P<what>.*\((?P<percent>\d{1,3})%\).*)$")


def share_done(line: str) -> float | None:
    """Return the percentage done in a stage's line, if it has one."""
    match = PROGRESS.match(line)
    return min(100.0, float(match["percent"])) if match else None


def duration(seconds: float) -> str:
    """Return a duration in words: ``42 s``, ``3 min 07 s``, ``2 h 05 min``."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s" if minutes else f"{rest} s"
    return f"{minutes // 60} h {minutes % 60:02} min"


class Terminal:
    """Shows the stages of a run.

    Parameters
    ----------
    stream : text stream
        Gets live lines if it is a terminal.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self.live = Progress(
            TextColumn("{task.fields[state]:<9}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}", markup=False),
            console=self.console,
            disable=not self.console.is_terminal,
            transient=True,
        )
        self.lock = threading.Lock()
        self.bars: dict[str, TaskID] = {}
        self.shown: dict[str, float] = {}

    def __enter__(self) -> "Terminal":
        self.live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.live.stop()

    def say(self, line: str) -> None:
        """Print a line above the live ones."""
        self.console.print(line, markup=False)

    def begin(self, stage: str) -> None:
        """Show that a stage has started."""
        with self.lock:
            self.shown[stage] = time.monotonic()
            if self.live.disable:
                self._print("running", None, stage, "")
            else:
                self.bars[stage] = self.live.add_task(stage, total=100, state="running", what="")

    def line(self, stage: str, line: str) -> None:
        """Show the progress in a line that a stage printed."""
        match = PROGRESS.match(line)
        if match is None:
            return
        with self.lock:
            if stage in self.bars:
                percent = min(100.0, float(match["percent"]))
                self.live.update(self.bars[stage], completed=percent, what=match["what"])
            elif time.monotonic() - self.shown.get(stage, 0.0) >= LOG_INTERVAL_S:
                self.shown[stage] = time.monotonic()
                self._print("running", None, stage, match["what"])

    def end(self, stage: str, state: str, seconds: float | None = None, why: str = "") -> None:
        """Show the outcome of a stage, how long it took, and why it failed if it did."""
        with self.lock:
            if stage in self.bars:
                self.live.remove_task(self.bars.pop(stage))
            self._print(state, seconds, stage, why)

    def _print(self, state: str, seconds: float | None, stage: str, what: str) -> None:
        took = "" if seconds is None else f"{seconds:.1f} s"
        self.say(f"{state:<9} {took:>9}  {stage}{f': {what}' if what else ''}")
