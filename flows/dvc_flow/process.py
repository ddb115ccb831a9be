"""Run a stage's command as processes of its own, and end them all when that is asked for."""

import atexit
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress

from dvc_flow import warden
from dvc_flow.errors import StageStopped, StageTimedOut
from dvc_flow.stop import Stop

POLL_S = 0.1
CHUNK = 1 << 16  # what a pipe holds, in bytes
LAST_CHUNKS = 32  # more than a pipe holds
LONGEST_LINE = 4096  # bytes; the rest of a line is dropped
KEPT_LINES = 20
SHOWN_LINES = 100  # at either end, of what is read at a time


class Lines:
    """Splits a stream of bytes into lines, in bounded memory; keeps the last ones.

    Parameters
    ----------
    on_lines : callable
        Called with the lines that have come since the last call. A progress bar, which redraws its
        line with carriage returns, counts as its last state.
    """

    def __init__(self, on_lines: Callable[[list[str]], None]) -> None:
        self.on_lines = on_lines
        self.rest = b""
        self.last: deque[str] = deque(maxlen=KEPT_LINES)

    def feed(self, chunk: bytes) -> None:
        """Take some bytes."""
        text = self.rest + chunk
        if (count := text.count(b"\n")) > 2 * SHOWN_LINES:
            head = text.split(b"\n", SHOWN_LINES)[:-1]
            *tail, rest = text.rsplit(b"\n", SHOWN_LINES + 1)[1:]
            left_out = f"… {count - 2 * SHOWN_LINES} lines left out".encode()
            whole = [*head, left_out, *tail]
        else:
            *whole, rest = text.split(b"\n")
        # Of a bar that redraws its line, the state before the last is enough.
        self.rest = b"\r".join(rest.split(b"\r")[-2:])[:LONGEST_LINE]
        self._give(whole)

    def end(self) -> None:
        """Take the end of the stream; a last line may lack its line end."""
        if self.rest:
            self._give([self.rest])
            self.rest = b""

    def _give(self, raw: Sequence[bytes]) -> None:
        lines = [
            line.rstrip(b"\r").rpartition(b"\r")[2][:LONGEST_LINE].decode(errors="replace").rstrip()
            for line in raw
        ]
        if lines:
            self.last.extend(line for line in lines[-KEPT_LINES:] if line)
            self.on_lines(lines)


class Warden:
    """Starts processes that end when this process dies, whatever kills it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.groups: set[int] = set()
        self.process: subprocess.Popen[bytes] | None = None

    def start(
        self,
        command: Sequence[str],
        *,
        folder: str,
        environment: Mapping[str, str],
        output: int,
        held: Sequence[int] = (),
        reads_input: bool = False,
    ) -> "subprocess.Popen[bytes]":
        """Start a command in a session of its own, which writes to the descriptor `output`."""
        with self.lock:
            announce = self._pipe()
        # The command's process announces itself before it becomes the command. Until then it holds
        # the pipe open, so that a warden that reads its end knows of every group.
        process = subprocess.Popen(  # noqa: S603 - the stage's own command
            ["/bin/sh", "-c", 'echo $$ >&2; exec "$@" 2>&1', "sh", *command],
            cwd=folder,
            env=environment,
            stdin=None if reads_input else subprocess.DEVNULL,
            stdout=output,
            stderr=announce,
            start_new_session=True,
            pass_fds=held,
        )
        with self.lock:
            self.groups.add(process.pid)
        return process

    def forget(self, group: int) -> None:
        """Note that a process group has ended, or may outlive us."""
        with self.lock:
            self.groups.discard(group)
            os.write(self._pipe(), b"-%d\n" % group)

    def _pipe(self) -> int:
        """Return the descriptor of a living warden's pipe."""
        if self.process is None or self.process.poll() is not None:
            if self.process is not None and self.process.stdin is not None:
                self.process.stdin.close()
            self.process = subprocess.Popen(  # noqa: S603
                [sys.executable, "-I", "-S", warden.__file__],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
                bufsize=0,
            )
            assert self.process.stdin is not None  # noqa: S101 - it is a pipe
            for group in self.groups:
                os.write(self.process.stdin.fileno(), b"%d\n" % group)
        assert self.process.stdin is not None  # noqa: S101
        return self.process.stdin.fileno()

    def dismiss(self) -> None:
        """End the warden; nothing of ours runs any more."""
        with self.lock:
            if self.process is not None and self.process.stdin is not None:
                self.process.stdin.close()
                self.process.wait()
                self.process = None


WARDEN = Warden()
atexit.register(WARDEN.dismiss)


def run_process(
    command: Sequence[str],
    *,
    name: str,
    folder: str,
    environment: Mapping[str, str],
    lines: Lines,
    stop: Stop,
    begin: float | None = None,
    timeout_s: float | None = None,
    held: Sequence[int] = (),
    reads_input: bool = False,
    background: bool = False,
) -> int:
    """Run a command, and return its exit status: 128 and the signal's number if one killed it.

    Parameters
    ----------
    command : sequence of str
    name : str
        The stage, for errors.
    folder : str
        Where it runs.
    environment : mapping
        Its environment variables.
    lines : Lines
        Takes what it prints.
    stop : Stop
        When it is set, the command is ended.
    begin : float, optional
        From when on time is counted, in the seconds of `time.monotonic`; from now by default.
    timeout_s : float, optional
        The time limit.
    held : sequence of int
        Descriptors of locks for the command to hold while it lives.
    reads_input : bool
        Whether it reads our standard input, rather than nothing.
    background : bool
        Whether what it leaves running may outlive it.

    Raises
    ------
    StageTimedOut
        If it takes longer than `timeout_s`.
    StageStopped
        If `stop` was set.
    """
    output, written = os.pipe()
    try:
        try:
            process = WARDEN.start(
                command,
                folder=folder,
                environment=environment,
                output=written,
                held=held,
                reads_input=reads_input,
            )
        finally:
            os.close(written)
        completed = False
        try:
            _follow(process, output, name, lines, stop, begin or time.monotonic(), timeout_s)
            completed = True
        finally:
            end(process, spare=background and completed)
            lines.end()
    finally:
        os.close(output)
    status = process.returncode
    return 128 - status if status < 0 else status


def _follow(
    process: "subprocess.Popen[bytes]",
    output: int,
    name: str,
    lines: Lines,
    stop: Stop,
    begin: float,
    timeout_s: float | None,
) -> None:
    """Read what a process prints until it ends."""
    os.set_blocking(output, False)
    poll = select.poll()
    poll.register(output, select.POLLIN | select.POLLHUP)
    interrupted, is_open = False, True
    while True:
        ended = process.poll() is not None
        if is_open and poll.poll(0 if ended else POLL_S * 1000):
            is_open = _read(output, lines)
        elif not is_open and not ended:
            with suppress(subprocess.TimeoutExpired):
                process.wait(POLL_S)
        if ended:  # what it printed last; what it left running may print for ever
            for _ in range(LAST_CHUNKS):
                if not (is_open and poll.poll(0) and _read(output, lines)):
                    return
            return
        waited = time.monotonic() - begin
        if stop.signal == signal.SIGINT and not interrupted:
            interrupted = True
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGINT)
        elif stop.signal == signal.SIGTERM:
            raise StageStopped(f"{name}: stopped after {waited:.0f} s")
        if timeout_s is not None and waited > timeout_s:
            raise StageTimedOut(f"{name}: took longer than {timeout_s:g} s")


def _read(descriptor: int, lines: Lines) -> bool:
    """Take what there is; return False at the end."""
    with suppress(BlockingIOError):
        chunk = os.read(descriptor, CHUNK)
        lines.feed(chunk)
        return bool(chunk)
    return True


def end(process: "subprocess.Popen[bytes]", *, spare: bool = False) -> None:
    """End a process and its group, and reap it.

    Parameters
    ----------
    process : Popen
        Started by the warden.
    spare : bool
        Whether what the process left running may go on.
    """
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(warden.GRACE_S)
    if not spare:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    WARDEN.forget(process.pid)


def explain_exit(status: int, command: str, lines: Sequence[str]) -> str:
    """Return why a command failed: its own error, or else its last line, and how it ended."""
    own = [line for line in lines if line.startswith("error: ")]
    if own:
        return own[-1].removeprefix("error: ")
    ended = f"exited with {status}"
    if status > 128:
        with suppress(ValueError):
            ended = f"was killed by {signal.Signals(status - 128).name}"
    last = f": {lines[-1]}" if lines else ""
    return f"{command} {ended}{last}"
