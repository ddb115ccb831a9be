"""Watch, beside a flow, for what must end it: a dead worker, or a cancelled run.

Prefect ends the process of a cancelled run through its worker. A run started from a terminal has
none, and a worker that is stopped or killed ends nothing: then the flow has to see for itself.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import psutil
from rich.console import Console

POLL_S = 1.0
POLLS_A_QUESTION = 2
GRACE_S = 60.0  # to end the stages and to report; then the process is killed
# Taken as early as possible: a worker that is killed while the flow begins is missed too.
STARTED_BY = os.getppid()
ADOPTS_ORPHANS = ("systemd", "init")


def outlive_output() -> None:
    """Have this process go on when nobody reads its output any more.

    A worker reads the output of its flows. When it is killed, Rich, through which Prefect writes
    its log to the console, would end the flow at its next line, before its state is reported.
    """
    Console.on_broken_pipe = _drop_output  # type: ignore[method-assign,assignment]


def _drop_output(console: Console) -> None:
    console.quiet = True


def end_with_worker() -> None:
    """End this process when the worker that started it ends, whatever it does or waits for.

    It is asked to end by SIGTERM, upon which Prefect reports the run as crashed; it is killed if it
    still lives after a minute. Calling this again, as a retried run does, changes nothing.
    """
    outlive_output()
    if all(thread.name != end_with_worker.__name__ for thread in threading.enumerate()):
        threading.Thread(
            target=_end_with, args=(STARTED_BY,), daemon=True, name=end_with_worker.__name__
        ).start()


def _end_with(worker: int) -> None:
    while os.getppid() == worker and not _adopts_orphans(worker):
        time.sleep(POLL_S)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os.kill(os.getpid(), signal.SIGKILL)


def _adopts_orphans(process: int) -> bool:
    """Tell whether a process is no worker, but what takes in the orphans of one."""
    try:
        command = psutil.Process(process).cmdline()
    except psutil.Error:
        return False
    name = os.path.basename(command[0]) if command else ""  # noqa: PTH119
    return name in ADOPTS_ORPHANS or (process == 1 and "prefect" not in " ".join(command))


@contextmanager
def watching(is_cancelled: Callable[[], bool], cancel: Callable[[], object]) -> Iterator[None]:
    """Watch for the cancellation of the run while the block runs.

    Parameters
    ----------
    is_cancelled : callable
        Asks the server whether the run was cancelled. An error counts as no.
    cancel : callable
        Called once if it was.
    """
    over = threading.Event()
    arguments = (over, is_cancelled, cancel)
    thread = threading.Thread(target=_watch, args=arguments, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(POLL_S)


def _watch(
    over: threading.Event, is_cancelled: Callable[[], bool], cancel: Callable[[], object]
) -> None:
    while not over.wait(POLL_S * POLLS_A_QUESTION):
        if _answers_yes(is_cancelled):
            cancel()
            return


def _answers_yes(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except Exception:
        return False  # a server that does not answer cancels nothing; the stages go on
