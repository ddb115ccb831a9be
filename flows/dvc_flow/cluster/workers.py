"""The workers of a cluster: which there are, what is free there, and a job on one of them.

The worker is chosen here: Dask binds a task to the workers that are there when it is submitted, so
one that joined later would idle, and one that died would be waited for.
"""

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import distributed

from dvc_flow.cluster import machine
from dvc_flow.cluster.job import Done, Job
from dvc_flow.cluster.scheduler import Worker, report
from dvc_flow.cluster.security import security_of
from dvc_flow.cluster.snapshot import Snapshot
from dvc_flow.errors import ClusterError, FlowError, StageStopped, one_line

CONNECT_S = 10.0
POLL_S = 0.25
EMPTY_S = 60.0  # without a worker, a run gives up
PLACE = "SLOT"
Amounts = dict[str, float]


@dataclass(frozen=True)
class Place:
    """Room for one stage on a worker."""

    worker: Worker
    amounts: Amounts


class Cluster:
    """The workers at a scheduler's address, while the block runs.

    Parameters
    ----------
    address : str
        The scheduler's, such as ``tcp://127.0.0.1:8786``.
    tls : Path, optional
        A folder with ``ca.pem``, ``cert.pem`` and ``key.pem``.
    snapshot : Snapshot
        Given to every worker that is used.
    say : callable
        Takes what the user should know of the workers.

    Raises
    ------
    ClusterError
        If the scheduler does not answer, or TLS is needed and missing.
    """

    def __init__(
        self, address: str, tls: Path | None, snapshot: Snapshot, say: Callable[[str], object]
    ) -> None:
        self.address, self.snapshot, self.say = address, snapshot, say
        logging.getLogger("distributed").setLevel(logging.CRITICAL)  # errors of ours are raised
        security = security_of(address, tls)
        try:
            self.client = distributed.Client(
                address, security=security, timeout=CONNECT_S, set_as_default=False
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise ClusterError(
                f"{address}: no scheduler answers there ({one_line(error)}); start one with "
                "dvc-flow scheduler"
            ) from error
        self.changed = threading.Condition()
        self.workers: dict[str, Worker] = {}
        self.refused: set[str] = set()
        self.taken: dict[str, Counter[str]] = {}  # by us, of each worker that may be used
        self.over = threading.Event()
        self.own = machine.installed()
        self.thread = threading.Thread(target=self._watch, daemon=True, name="cluster")

    def __enter__(self) -> "Cluster":
        self.thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.over.set()
        with suppress(Exception):  # the scheduler may be gone
            self.client.close(timeout=CONNECT_S)
        self.thread.join(CONNECT_S)

    def _watch(self) -> None:
        while not self.over.wait(POLL_S):
            try:
                found = {each.address: each for each in self.client.run_on_scheduler(report)}
            # It is gone, or does not answer; who waits for a place asks whether it is.
            except Exception:
                with self.changed:
                    self.changed.notify_all()
                continue
            for address, worker in found.items():
                if address not in self.workers and address not in self.refused:
                    self._greet(worker)
            with self.changed:
                # What we take is known here at once, and to the scheduler a moment later.
                self.workers = {
                    address: worker.without(self.taken[address])
                    for address, worker in found.items()
                    if address in self.taken
                }
                self.changed.notify_all()

    def _greet(self, worker: Worker) -> None:
        """Hand a new worker the snapshot, and take it in if its packages are ours."""
        snapshot = self.snapshot
        arguments = snapshot.project, snapshot.digest, snapshot.archive
        try:
            answers = self.client.run(machine.greet, *arguments, workers=[worker.address])
        except Exception as error:  # it has gone, or cannot write
            self.say(f"{worker.name}: does not take the snapshot ({one_line(error)})")
            return
        theirs = answers[worker.address]
        names = sorted(
            name for name in {*theirs, *self.own} if theirs.get(name) != self.own.get(name)
        )
        if names:
            self.refused.add(worker.address)
            first = names[0]
            self.say(
                f"{worker.name}: not used, since its packages differ: {first} "
                f"{theirs.get(first, 'missing')} there, {self.own.get(first, 'missing')} here"
                + (f", and {len(names) - 1} more" if names[1:] else "")
            )
            return
        with self.changed:
            self.taken.setdefault(worker.address, Counter())
            self.workers[worker.address] = worker

    @property
    def places(self) -> int:
        """How many stages can run at a time."""
        with self.changed:
            return sum(int(worker.total[PLACE]) for worker in self.workers.values())

    @contextmanager
    def place(self, gpus: float, memory_gb: float, stop: Any) -> Iterator[Place]:
        """Hold room for a stage while the block runs, waiting for it.

        A stage that asks for more than the best worker has gets what that one has.

        Raises
        ------
        StageStopped
            If the stages were asked to end.
        ClusterError
            If there is no worker for a minute, or no scheduler any more.
        """
        waited = 0.0
        with self.changed:
            while (found := self._find({"GPU": gpus, "MEMORY": memory_gb})) is None:
                if stop.is_set():
                    raise StageStopped("stopped while it waited for a worker")
                self._require_scheduler()
                waited = 0.0 if self.workers else waited + POLL_S
                if waited >= EMPTY_S:
                    raise ClusterError(
                        f"{self.address}: no worker that can be used; start one with dvc-flow "
                        f"worker {self.address}"
                    )
                self.changed.wait(POLL_S)
            self.taken[found.worker.address].update(found.amounts)
        try:
            yield found
        finally:
            with self.changed:
                self.taken[found.worker.address].subtract(found.amounts)
                self.changed.notify_all()

    def _require_scheduler(self) -> None:
        if self.client.status not in ("running", "connecting"):
            raise ClusterError(
                f"{self.address}: the scheduler is gone; what was finished is in DVC's remote, and "
                "is restored by the next run"
            )

    def _find(self, wanted: Mapping[str, float]) -> Place | None:
        """Return the room that leaves the most of what is scarce; None while there is none."""
        workers = list(self.workers.values())
        best = {kind: max((w.total.get(kind, 0) for w in workers), default=0) for kind in wanted}
        amounts = {kind: min(amount, best[kind]) for kind, amount in wanted.items() if amount}
        amounts = {PLACE: 1.0} | {kind: amount for kind, amount in amounts.items() if amount}
        able = []
        for worker in workers:
            free = worker.free(self.taken[worker.address])
            if all(free.get(kind, 0) >= amount for kind, amount in amounts.items()):
                left = free.get("GPU", 0) - amounts.get("GPU", 0)
                able.append((left, -free[PLACE], worker.address))
        return Place(self.workers[min(able)[2]], amounts) if able else None

    def run(self, job: Job, place: Place, is_stopped: Callable[[], bool]) -> Done:
        """Run a job at a place, and return its result.

        Raises
        ------
        StageStopped
            If the stages were asked to end.
        WorkerDied
            If the worker did.
        ClusterError
            If the scheduler did.
        FlowError
            What the stage ended with.
        """
        future = self.client.submit(
            machine.run_job, job, key=f"{job.stage}-{uuid.uuid4()}", pure=False, retries=0,
            workers=[place.worker.address], resources=place.amounts,
        )  # fmt: skip
        ended = threading.Event()
        future.add_done_callback(lambda _: ended.set())
        try:
            while not ended.wait(POLL_S):
                if is_stopped():
                    raise StageStopped(f"{job.stage}: stopped")
                self._require_scheduler()
                with self.changed:
                    if place.worker.address not in self.workers:
                        raise WorkerDied
            if future.status == "finished":
                done: Done = future.result()
                return done
            if future.status == "error":
                error = future.exception() or RuntimeError("unknown")
                if isinstance(error, distributed.KilledWorker):
                    raise WorkerDied
                if isinstance(error, FlowError):
                    raise error
                raise ClusterError(
                    f"{job.stage}: {place.worker.name} fails ({type(error).__name__}: "
                    f"{one_line(error)}); see what it prints"
                ) from error
            self._require_scheduler()
            raise WorkerDied
        finally:
            future.cancel() if not future.done() else future.release()


class WorkerDied(Exception):  # noqa: N818 - the stage did not fail
    """A worker ended while it ran a stage."""
