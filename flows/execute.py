"""Run one stage through DVC, safely alongside others in the same workspace.

Each stage is a process ``dvc --wait-for-lock repro --single-item STAGE``, started once its upstream
stages have finished. DVC waits for the repository's lock, but fails at once if its read-write lock
is busy; then the stage is retried here, a bounded number of times.
"""

import ctypes
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from enum import StrEnum
from pathlib import Path

from flows import supervise
from flows.errors import StageFailed, StageStopped, StageTimedOut

POLL_S = 0.1
LOCK_WAIT_S = 600.0  # DVC itself would wait forever
BUSY_TRIES = 60
BUSY_WAIT_S = 1.0
KEPT_LINES = 20
PR_SET_CHILD_SUBREAPER = 36  # man 2 prctl


class Outcome(StrEnum):
    """The outcome of a stage, named like its state in Prefect."""

    RAN = "Completed"
    CACHED = "Cached"  # DVC found it unchanged
    RESTORED = "Restored"  # the run-cache had its outputs


class _Busy(Exception):  # noqa: N818
    """Another process held DVC's read-write lock."""


def run_stage(
    root: Path,
    stage: str,
    *,
    force: bool = False,
    pull: bool = False,
    lost: bool = False,
    variables: Mapping[str, str] | None = None,
    held: Sequence[int] = (),
    timeout_s: float | None = None,
    stop: threading.Event | None = None,
    on_line: Callable[[str], None] = print,
) -> Outcome:
    """Run a stage, and return its outcome.

    Parameters
    ----------
    root : Path
        The workspace.
    stage : str
        As DVC addresses it.
    force : bool
        Run it even if nothing changed.
    pull : bool
        Fetch its inputs and its earlier runs first, see `flows.single`.
    lost : bool
        With `pull`: run it although only its outputs are missing.
    variables : mapping
        Environment variables for the stage's command.
    held : sequence of int
        Descriptors of locks for the stage's supervisor to hold while it lives.
    timeout_s : float, optional
        The time limit.
    stop : threading.Event, optional
        When it is set, the stage is ended.
    on_line : callable
        Called with each line that DVC and the command print.

    Raises
    ------
    StageFailed
        If the command fails, or DVC's lock is not released in time.
    StageTimedOut
        If it takes longer than `timeout_s`.
    StageStopped
        If `stop` was set.
    """
    stop = stop or threading.Event()
    adopt_orphans()
    command = _command(stage, force, pull, lost)
    for _ in range(BUSY_TRIES):
        try:
            return _run_once(root, stage, command, variables, held, timeout_s, stop, on_line)
        except _Busy:
            # With jitter, so that two processes do not collide again.
            if stop.wait(BUSY_WAIT_S * random.uniform(0.5, 1.5)):  # noqa: S311
                raise StageStopped(f"{stage}: stopped") from None
    raise StageFailed(f"{stage}: DVC's read-write lock was busy {BUSY_TRIES} times")


def _command(stage: str, force: bool, pull: bool, lost: bool) -> list[str]:
    how = ["--force"] * force
    if pull:
        return [sys.executable, "-m", "flows.single", stage, *how, *["--lost"] * lost]
    return [sys.executable, "-m", "dvc", "--wait-for-lock", "repro", "--single-item", *how, stage]


def _run_once(
    root: Path,
    stage: str,
    command: Sequence[str],
    variables: Mapping[str, str] | None,
    held: Sequence[int],
    timeout_s: float | None,
    stop: threading.Event,
    on_line: Callable[[str], None],
) -> Outcome:
    process = subprocess.Popen(  # noqa: S603 - the command is DVC's
        [sys.executable, "-S", "-E", supervise.__file__, *command],
        cwd=root,
        env=environment(variables or {}),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
        pass_fds=held,
    )
    output = _Output(process)
    begin = time.monotonic()
    try:
        while True:
            line = output.next_line()
            if line is None:
                break
            if line:
                on_line(line)
            elif process.poll() is not None:
                break  # killed; processes that it left may still hold the pipe
            waited = time.monotonic() - begin
            if stop.is_set():
                raise StageStopped(f"{stage}: stopped after {waited:.0f} s")
            if timeout_s is not None and waited > timeout_s:
                raise StageTimedOut(f"{stage}: took longer than {timeout_s:g} s")
            if not output.lines and waited > LOCK_WAIT_S:
                raise StageFailed(
                    f"{stage}: timed out after {LOCK_WAIT_S:g} s waiting for the DVC lock"
                )
        status = process.wait()
    finally:
        _end(process)
    return _judge(stage, status, output)


class _Output:
    """The lines of a process, read in a thread, so that a silent process can be ended."""

    def __init__(self, process: "subprocess.Popen[bytes]") -> None:
        self.process = process
        self.lines: list[str] = []
        self.skipped = self.restored = self.ran = self.busy = False
        self.waiting: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None  # noqa: S101 - it is a pipe
        for raw in self.process.stdout:
            self.waiting.put(raw.decode(errors="replace").rstrip().rpartition("\r")[2])
        self.waiting.put(None)

    def next_line(self) -> str | None:
        """Return the next line, an empty string if there is none yet, or None at the end."""
        try:
            line = self.waiting.get(timeout=POLL_S)
        except queue.Empty:
            return ""
        if line:
            self.lines = [*self.lines, line][-KEPT_LINES:]
            self.skipped |= line.startswith("Stage '") and line.endswith("didn't change, skipping")
            self.restored |= "is cached - skipping run, checking out outputs" in line
            self.ran |= line.startswith("Running stage '")
            self.busy |= "is busy, it is being blocked by" in line
        return line if line is None else line or ""


def environment(more: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a command, in which ``python`` is this one, unbuffered."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"} | dict(more)


def adopt_orphans(adopt: bool = True) -> None:
    """Become the parent of the orphans of a killed supervisor, in order to reap them.

    Until it is reaped, DVC takes a dead process for the holder of a lock. Linux only.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, int(adopt), 0, 0, 0)


def _judge(stage: str, status: int, output: _Output) -> Outcome:
    if status == 0:
        if output.restored and not output.ran:
            return Outcome.RESTORED
        return Outcome.CACHED if output.skipped and not output.ran else Outcome.RAN
    if output.busy and not output.ran:
        raise _Busy
    if status < 0:
        raise StageFailed(f"{stage}: was killed by {signal.Signals(-status).name}")
    raise StageFailed(f"{stage}: {_reason(output.lines) or f'exit status {status}'}")


def _reason(lines: Sequence[str]) -> str:
    """Return why a stage failed: its own error, or else its last line; with what DVC says of it."""
    own = [line for line in lines if line.startswith("error: ")]
    if own:
        return own[0].removeprefix("error: ")
    begin = next((n for n, line in enumerate(lines) if line.startswith("ERROR: ")), len(lines))
    said = [" ".join(lines[begin:]).removeprefix("ERROR: ")]
    before = lines[begin - 1] if begin else ""
    if not before.startswith(("> ", "Running stage '", "Stage '")):
        said.append(before)
    return "; ".join(filter(None, said))


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End all processes of the stage, and reap its supervisor."""
    if process.poll() is None:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(supervise.GRACE_S + 1)
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    with suppress(ChildProcessError):
        while True:  # orphans of a killed supervisor, see adopt_orphans
            os.waitpid(-process.pid, 0)
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError, ValueError):
                pipe.close()
