"""Progress of long work: a bar in a terminal, occasional lines in a log."""

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, TextIO

from tqdm import tqdm

LOG_INTERVAL_S = 10.0


def duration(seconds: float) -> str:
    """Return a duration in words: ``42 s``, ``3 min 07 s``, ``2 h 05 min``."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02} min"


class Progress(AbstractContextManager["Progress"]):
    """Shows how much is done, the speed and the time left.

    Parameters
    ----------
    task : str
        What is being done, such as ``"train mnist/lenet5"``.
    total : int
        The amount of work, in `unit`.
    unit : str
        What is counted, such as ``"steps"``.
    rate_unit : str
        The unit of the speed, such as ``"images"``.
    rate_per_unit : float
        How many of `rate_unit` make one `unit`: for steps, the batch size.
    stream : text stream
        Gets a bar if it is a terminal, lines otherwise.
    clock : callable
        Returns the time in seconds.
    """

    def __init__(
        self,
        task: str,
        total: int,
        unit: str,
        *,
        rate_unit: str,
        rate_per_unit: float = 1,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.task, self.total, self.unit = task, total, unit
        self.rate_unit, self.rate_per_unit = rate_unit, rate_per_unit
        self.stream = stream or sys.stderr
        self.clock = clock
        self.done = self.logged = self.skipped = 0
        self.detail = ""
        self.started = self.last_line = clock()
        self.bar: tqdm[Any] | None = None
        if self.stream.isatty():
            self.bar = tqdm(
                total=total,
                file=self.stream,
                desc=task,
                bar_format="{desc} |{bar}| {postfix}",
                leave=True,
            )

    def advance(self, count: int, detail: str = "") -> None:
        """Count `count` more units as done, and show it when due."""
        self.done += count
        self.detail = detail
        if self.bar is not None:
            self.bar.set_postfix_str(self.status(), refresh=False)
            self.bar.update(count)
        elif self.clock() - self.last_line >= LOG_INTERVAL_S:
            self._write_line()

    def skip(self, count: int) -> None:
        """Count `count` units that an earlier run did; they do not count towards the speed."""
        self.done += count
        self.skipped += count
        if self.bar is not None:
            self.bar.update(count)

    def status(self) -> str:
        """Return units done and planned, share, speed and time left, as one line."""
        elapsed = self.clock() - self.started
        speed = (self.done - self.skipped) / elapsed if elapsed > 0 else 0.0
        share = self.done / self.total if self.total else 1.0
        parts = [f"{self.done:,}/{self.total:,} {self.unit} ({share:.0%})"]
        if speed > 0:
            parts.append(f"{speed * self.rate_per_unit:,.0f} {self.rate_unit}/s")
            parts.append(f"{duration((self.total - self.done) / speed)} left")
        if self.detail:
            parts.append(self.detail)
        return ", ".join(parts)

    def _write_line(self) -> None:
        self.last_line, self.logged = self.clock(), self.done
        print(f"{self.task}: {self.status()}", file=self.stream, flush=True)

    def __exit__(self, kind: object, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif kind is None and self.logged < self.done:
            self._write_line()
