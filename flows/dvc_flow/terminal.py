"""A run in the terminal: one line per stage with its state, progress and time.

A terminal gets live lines; a log gets a line when a stage starts and ends, and occasional progress.
"""

import re
import sys
import threading
import time
from collections.abc import Sequence
from typing import TextIO

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

LOG_INTERVAL_S = 30.0
SEARCHED = 20  # lines; those before them are older
SHOWN = 10  # last lines of a failed stage


def last_progress(pattern: re.Pattern[str], lines: Sequence[str]) -> tuple[float, str] | None:
    """Return the percentage done, and what to show, of the last line that reports progress."""
    for line in reversed(lines[-SEARCHED:]):
        match = pattern.match(line)
        if match:
            return min(100.0, float(match["percent"])), match["what"]
    return None


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
    progress : pattern
        Finds the progress in a stage's line.
    stream : text stream
        Gets live lines if it is a terminal.
    quiet : bool
        Whether to show failures alone.
    """

    def __init__(
        self, progress: re.Pattern[str], stream: TextIO | None = None, *, quiet: bool = False
    ) -> None:
        self.progress = progress
        self.quiet = quiet
        self.console = Console(file=stream or sys.stdout, highlight=False, soft_wrap=True)
        self.errors = Console(stderr=True, highlight=False, soft_wrap=True)
        self.live = Progress(
            TextColumn("{task.fields[state]:<9}"),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            TextColumn("{task.fields[what]}", markup=False),
            console=self.console,
            disable=quiet or not self.console.is_terminal,
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
        if not self.quiet:
            self.console.print(line, markup=False)

    def warn(self, line: str) -> None:
        """Print a line on standard error."""
        self.errors.print(line, markup=False)

    def begin(self, stage: str) -> None:
        """Show that a stage has started."""
        with self.lock:
            self.shown[stage] = time.monotonic()
            if self.live.disable:
                self._print("running", None, stage, "")
            else:
                self.bars[stage] = self.live.add_task(stage, total=100, state="running", what="")

    def lines(self, stage: str, lines: Sequence[str]) -> None:
        """Show the progress in lines that a stage printed."""
        found = last_progress(self.progress, lines)
        if found is None:
            return
        with self.lock:
            if stage in self.bars:
                self.live.update(self.bars[stage], completed=found[0], what=found[1])
            elif time.monotonic() - self.shown.get(stage, 0.0) >= LOG_INTERVAL_S:
                self.shown[stage] = time.monotonic()
                self._print("running", None, stage, found[1])

    def end(
        self,
        stage: str,
        state: str,
        seconds: float | None = None,
        why: str = "",
        last: Sequence[str] = (),
    ) -> None:
        """Show the outcome of a stage, how long it took, and why it failed if it did.

        Parameters
        ----------
        stage, state : str
        seconds : float, optional
        why : str
            The reason of a failure; a quiet terminal shows only those.
        last : sequence of str
            The lines that it printed last.
        """
        with self.lock:
            if stage in self.bars:
                self.live.remove_task(self.bars.pop(stage))
            self._print(state, seconds, stage, why, is_failure=bool(why))
            for line in last[-SHOWN:]:
                self.console.print(f"  | {line}", markup=False)

    def _print(
        self,
        state: str,
        seconds: float | None,
        stage: str,
        what: str,
        *,
        is_failure: bool = False,
    ) -> None:
        took = "" if seconds is None else f"{seconds:.1f} s"
        if is_failure or not self.quiet:
            line = f"{state:<9} {took:>9}  {stage}{f': {what}' if what else ''}"
            self.console.print(line, markup=False)
