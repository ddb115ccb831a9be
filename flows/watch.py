"""Watch, beside a running flow, for what must end it: a dead worker, or a cancelled run.

Prefect ends the process of a cancelled run through its worker. A run started from a terminal has
none, and a worker that was killed ends nothing: then the flow has to see for itself.
"""

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console

POLL_S = 1.0
POLLS_A_QUESTION = 2
# Taken as early as can be: a worker that is killed while the flow begins is missed too.
STARTED_BY = os.getppid()


def outlive_output() -> None:
    """Have this process go on when nobody reads its output any more.

    A worker reads the output of its flows. When it is killed, Rich, through which Prefect writes
    its log to the console, would end the flow at its next line, before its state is reported.
    """
    Console.on_broken_pipe = _drop_output  # type: ignore[method-assign,assignment]


def _drop_output(console: Console) -> None:
    console.quiet = True


@contextmanager
def watching(
    is_cancelled: Callable[[], bool], cancel: Callable[[], object], *, has_worker: bool
) -> Iterator[None]:
    """Watch while the block runs.

    Parameters
    ----------
    is_cancelled : callable
        Asks the server whether the run was cancelled. An error counts as no.
    cancel : callable
        Called once if it was.
    has_worker : bool
        Whether a worker started this process. When it dies, SIGTERM ends this process too.
    """
    over = threading.Event()
    arguments = (over, STARTED_BY if has_worker else None, is_cancelled, cancel)
    thread = threading.Thread(target=_watch, args=arguments, daemon=True, name="watch")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(POLL_S)


def _watch(
    over: threading.Event,
    worker: int | None,
    is_cancelled: Callable[[], bool],
    cancel: Callable[[], object],
) -> None:
    polls = 0
    asking = True
    while not over.wait(POLL_S):
        polls += 1
        if worker is not None and os.getppid() != worker:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        if asking and polls % POLLS_A_QUESTION == 0 and _answers_yes(is_cancelled):
            cancel()
            asking = False


def _answers_yes(question: Callable[[], bool]) -> bool:
    try:
        return question()
    except Exception:
        return False  # a server that does not answer cancels nothing; the stages go on
