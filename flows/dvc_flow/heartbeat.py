"""A flow run's heartbeats: when they stop, the server knows that its process died."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import copy_context
from datetime import timedelta

from prefect import runtime
from prefect.events import emit_event

INTERVAL = timedelta(seconds=30)


@contextmanager
def beating() -> Iterator[None]:
    """Send a heartbeat now and then while the block runs, inside a flow run.

    Prefect can send its own (``flows.heartbeat_frequency``), but the thread that does so sleeps for
    whole seconds, and each run waits for it at its end.
    """
    over = threading.Event()
    beat = copy_context().run  # Prefect finds the run, and the server, in the context
    thread = threading.Thread(target=beat, args=(_beat, over), daemon=True, name="heartbeat")
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def _beat(over: threading.Event) -> None:
    resource = {
        "prefect.resource.id": f"prefect.flow-run.{runtime.flow_run.id}",
        "prefect.resource.name": runtime.flow_run.name or "",
    }
    while True:
        with suppress(Exception):  # a missed heartbeat ends nothing; the next one may arrive
            emit_event("prefect.flow-run.heartbeat", resource)
        if over.wait(INTERVAL.total_seconds()):
            return
