"""Watch for what must end a flow: a dead worker, or a cancelled run.

Prefect ends the process of a cancelled run through its worker. A run started from a terminal has
none, and a worker that is stopped or killed ends nothing, so the flow has to watch for itself.
"""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
from rich.console import Console

POLL_S = 1.0
POLLS_A_QUESTION = 2
GRACE_S = 60.0  # to end the stages and to report; then the process is killed
# Taken as early as possible: a worker that is killed while the flow begins is missed too.
STARTED_BY = os.getppid()
ADOPTS_ORPHANS = ("systemd", "init")


def outlive_output() -> None:
    """Let this process continue when nobody reads its output any more.

    A worker reads the output of its flows. If it is killed, Rich, through which Prefect logs to the
    console, would end the flow at its next line, before it reports its state.
    """
    Console.on_broken_pipe = _drop_output  # type: ignore[method-assign,assignment]


def _drop_output(console: Console) -> None:
    console.quiet = True


def end_with_worker() -> None:
    """End this process when the worker that started it ends, whatever it does or waits for.

    SIGTERM asks it to end, upon which Prefect reports the run as crashed; after a minute it is
    killed. Calling this again, as a retried run does, has no effect.
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
    """Tell whether a process is not a worker, but the one that adopts the orphans of a dead worker.

    Then the worker was gone before this module was loaded.
    """
    try:
        command = psutil.Process(process).cmdline()
    except psutil.Error:
        return False
    name = Path(command[0]).name if command else ""
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
