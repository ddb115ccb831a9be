"""The machine on which a Dask worker runs: its slots, and what it has."""

import os
import queue
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import distributions
from multiprocessing.connection import Connection
from pathlib import Path

import distributed

from dvc_flow.cluster.job import Done, Job
from dvc_flow.cluster.slot import STOP
from dvc_flow.errors import FlowError
from dvc_flow.slots import try_lock

HOME = "DVC_FLOW_WORKER_HOME"
WATCH_S = 0.2
# They install packages; no stage's result depends on them.
INSTALLERS = ("pip", "setuptools", "wheel", "uv")


def installed() -> dict[str, str]:
    """Return the versions of Python and of all packages, by name."""
    found = {each.name.lower(): each.version for each in distributions()}
    for name in INSTALLERS:
        found.pop(name, None)
    return {"python": ".".join(map(str, sys.version_info[:3])), **found}


def greet(project: str, digest: str, archive: bytes) -> dict[str, str]:
    """Take a project's snapshot, on a worker, and return what is installed there."""
    folder = home() / project
    target = folder / digest
    if not target.exists():
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / f"{digest}.{os.getpid()}.part"
        part.write_bytes(archive)
        part.replace(target)
    return installed()


def home() -> Path:
    """Return the folder for slots, snapshots and DVC's cache."""
    return Path(os.environ[HOME])


class Slot:
    """A process with a workspace of its own, which is kept from job to job.

    Parameters
    ----------
    workspace : Path
    lock : int
        The descriptor that holds it against other workers of this machine.
    """

    def __init__(self, workspace: Path, lock: int) -> None:
        self.workspace, self.lock = workspace, lock
        self.process: subprocess.Popen[bytes] | None = None
        self.connection: Connection | None = None

    def perform(
        self, job: Job, is_over: Callable[[], bool], say: Callable[[list[str]], None]
    ) -> Done:
        """Have the process perform a job, and return the result.

        Parameters
        ----------
        job : Job
        is_over : callable
            Tells whether the result is wanted no longer.
        say : callable
            Takes the stage's lines.

        Raises
        ------
        FlowError
            If the stage fails or is stopped, or the process dies.
        """
        connection = self._connect()
        asked = False
        try:
            connection.send(job)
            while True:
                if not asked and is_over():
                    connection.send(STOP)
                    asked = True
                if not connection.poll(WATCH_S):
                    continue
                answer = connection.recv()
                if isinstance(answer, FlowError):
                    raise answer
                if isinstance(answer, Done):
                    return answer
                say(answer)
        except (EOFError, OSError) as error:
            self.close()
            raise FlowError(f"{job.stage}: its process died on {socket.gethostname()}") from error

    def _connect(self) -> Connection:
        if self.process is None or self.connection is None or self.process.poll() is not None:
            self.close()
            ours, theirs = socket.socketpair()
            with theirs:
                command = [sys.executable, "-m", "dvc_flow.cluster.slot", str(theirs.fileno())]
                self.process = subprocess.Popen(  # noqa: S603
                    [*command, str(self.workspace), str(home() / "cache")],
                    pass_fds=[theirs.fileno()],
                    stdin=subprocess.DEVNULL,
                )
            self.connection = Connection(ours.detach())
        return self.connection

    def close(self) -> None:
        """Let the process end."""
        if self.connection is not None:
            self.connection.close()
            self.connection = None
        if self.process is not None:
            self.process.wait()
            self.process = None


class Slots:
    """The slots of this process, by project; made as they are needed."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.free: dict[str, queue.LifoQueue[Slot]] = {}

    @contextmanager
    def one(self, project: str) -> Iterator[Slot]:
        """Hold a slot while the block runs; one that was used before, if there is one."""
        with self.lock:
            free = self.free.setdefault(project, queue.LifoQueue())
        try:
            slot = free.get_nowait()
        except queue.Empty:
            slot = self._make(home() / project)
        try:
            yield slot
        finally:
            free.put(slot)

    def _make(self, folder: Path) -> Slot:
        number = 0
        while (lock := try_lock(folder / f"slot{number}.lock")) is None:
            number += 1
        workspace = folder / f"slot{number}"
        workspace.mkdir(exist_ok=True)
        return Slot(workspace, lock)


@cache
def slots() -> Slots:
    """Return the slots of this process."""
    return Slots()


def run_job(job: Job) -> Done:
    """Run a job in a slot of this worker, as a Dask task; its lines go to the job's topic."""
    worker = distributed.get_worker()
    key = worker.get_current_task()

    def is_over() -> bool:
        # Dask never stops a thread: it was cancelled, its coordinator is gone, or the worker ends.
        task = worker.state.tasks.get(key)
        running = worker.status is distributed.Status.running
        return task is None or task.state != "executing" or not running

    def say(lines: list[str]) -> None:
        worker.log_event(job.topic, [job.stage, lines])

    with slots().one(job.project) as slot:
        return slot.perform(job, is_over, say)
