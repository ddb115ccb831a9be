"""Run the stages of a plan on the workers of a cluster.

The coordinator decides what runs, as a local flow does, and alone writes dvc.lock. It chooses the
worker itself: Dask binds a task to the workers that are there when it is submitted, so one that
joined later would idle, and one that died would be waited for.
"""

import logging
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import distributed
from dvc.stage import PipelineStage
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_lockfile

from dvc_flow.cluster import machine
from dvc_flow.cluster.job import Done, Job
from dvc_flow.cluster.scheduler import Worker, report
from dvc_flow.cluster.security import security_of
from dvc_flow.cluster.snapshot import Snapshot, take_snapshot
from dvc_flow.engine import Engine, Outcome
from dvc_flow.errors import ClusterError, StageFailed, StageStopped, one_line
from dvc_flow.remote import inputs_of
from dvc_flow.repository import Node, changes_of, lock_of, reason_of

if TYPE_CHECKING:
    pass

CONNECT_S = 10.0
POLL_S = 0.25
EMPTY_S = 60.0  # without a worker, a run gives up
DEATHS = 3  # workers that a stage may take with it
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
        self.taken: dict[str, Counter[str]] = {}  # by us, which the scheduler may not know yet
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
                self.workers = {
                    address: worker
                    for address, worker in found.items()
                    if address in self.workers or address in self.taken
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
            free = worker.free(dict(self.taken[worker.address]))
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
                error = future.exception()
                if isinstance(error, distributed.KilledWorker):
                    raise WorkerDied
                assert error is not None  # noqa: S101 - Dask has one
                raise error
            self._require_scheduler()
            raise WorkerDied
        finally:
            future.cancel() if not future.done() else future.release()


class WorkerDied(Exception):  # noqa: N818 - the stage did not fail
    """A worker ended while it ran a stage."""


class ClusterEngine(Engine):
    """Runs stages with a command on a cluster's workers, and the others here.

    Parameters
    ----------
    address, tls
        As `Cluster` takes them.
    **how
        As `Engine` takes it.
    """

    def __init__(self, *given: Any, address: str, tls: Path | None = None, **how: Any) -> None:
        if not how.get("commit", True):
            raise ClusterError("--no-commit: results come from a cluster through DVC's cache")
        super().__init__(*given, **(how | {"pull": True}))
        self.fetch = not how.get("allow_missing")
        self.allow_missing = True
        self.address, self.tls = address, tls
        self.topic = f"dvc-flow-{uuid.uuid4()}"
        self.listeners: dict[str, Callable[[list[str]], None]] = {}
        self.shared: set[str] = set()  # the outputs that DVC's remote is known to have
        self.taken: set[Any] = set()  # those whose results came from workers
        self.stack = ExitStack()

    def __enter__(self) -> "ClusterEngine":
        with self.repository.held() as repo:
            outs = [
                out for stage in repo.index.stages for out in stage.outs if out.protocol == "local"
            ]
            deps = [
                dep for node in self.nodes if node.stage is not None
                for dep in node.stage.deps if dep.protocol == "local"
            ]  # fmt: skip
            needed = {Path(dep.fs_path) for dep in deps} - {Path(out.fs_path) for out in outs}
            data = {Path(out.fs_path) for out in outs if out.use_cache}
            snapshot = take_snapshot(self.repository.root, needed, data)
            config = repo.config
            self.remotes = {name: dict(each) for name, each in config["remote"].items()}
            self.remote = config["core"].get("remote")
            self.recorded = {
                each: deepcopy(each.dvcfile.lockfile_contents.get("stages", {}).get(each.name))
                for node in self.nodes
                for each in [*node.sources, *([node.stage] if node.stage else [])]
                if isinstance(each, PipelineStage)
            }
        self.cluster = self.stack.enter_context(Cluster(self.address, self.tls, snapshot, self.say))
        self.snapshot = snapshot
        self.cluster.client.subscribe_topic(self.topic, self._hear)
        return self

    def __exit__(self, *_: object) -> None:
        self.stack.close()

    def _hear(self, event: tuple[Any, Any]) -> None:
        stage, lines = event[1]
        self.listeners.get(stage, lambda _: None)(list(lines))

    @property
    def places(self) -> int:
        """How many stages can run at a time."""
        return max(self.cluster.places, 1)

    def run(
        self,
        node: Node,
        *,
        force: bool = False,
        on_begin: Callable[[], object] = lambda: None,
        on_lines: Callable[[list[str]], None] = lambda _: None,
    ) -> Outcome:
        """Run a stage where there is room for it; a stage without a command, here."""
        stage = node.stage
        if not isinstance(stage, PipelineStage) or stage.frozen or not stage.cmd:
            return super().run(node, force=force, on_begin=on_begin, on_lines=on_lines)
        with self.repository.held():
            changes, _ = changes_of(stage, node.sources)
            if not force and not node.lost and not changes:
                return Outcome.CACHED
            self._share_inputs(node)
            job = self._job(node, force)
        policy = node.policy
        self.listeners[job.stage] = on_lines
        try:
            for _ in range(DEATHS):
                with self.cluster.place(policy.gpus, policy.memory_gb, self.stop) as place:
                    on_begin()
                    on_lines([f"on {place.worker.name}"])
                    try:
                        done = self.cluster.run(job, place, self.stop.is_set)
                    except WorkerDied:
                        on_lines([f"{place.worker.name} died"])
                        continue
                self._take(node, done)
                self.devices[node.name] = ", ".join(filter(None, [place.worker.name, done.device]))
                return Outcome(done.outcome)
        finally:
            del self.listeners[job.stage]
        raise StageFailed(f"{node.name}: {DEATHS} workers died while they ran it")

    def _share_inputs(self, node: Node) -> None:
        """Send the stage's inputs to DVC's remote, unless they came from there."""
        assert node.stage is not None  # noqa: S101
        wanted = [
            out for out in inputs_of(node.stage, node.sources)
            if out.use_cache and out.hash_info and str(out.hash_info) not in self.shared
        ]  # fmt: skip
        if wanted:
            try:
                node.stage.repo.push([out.fs_path for out in wanted])
            except Exception as error:  # each kind of remote has errors of its own
                raise StageFailed(
                    f"{node.name}: {', '.join(map(str, wanted))} could not be sent to DVC's remote "
                    f"({one_line(error)}); workers fetch it from there"
                ) from error
            self.shared.update(str(out.hash_info) for out in wanted)

    def _job(self, node: Node, force: bool) -> Job:
        stage, root = node.stage, self.repository.root
        assert isinstance(stage, PipelineStage)  # noqa: S101
        locks: dict[str, dict[str, Any]] = {}
        for each in [*node.sources, stage]:
            path = lock_of(each)
            if path is not None and Path(path).is_relative_to(root):
                entries = locks.setdefault(str(Path(path).relative_to(root)), {})
                entry = self.recorded.get(each)
                if each in self.taken:
                    entry = deepcopy(to_lockfile(each)[each.name])
                if entry:
                    entries[each.name] = entry
        dvcfile = Path(stage.path).relative_to(root)
        return Job(
            stage=f"{dvcfile}:{stage.name}",
            project=self.snapshot.project,
            snapshot=self.snapshot.digest,
            inside=self.snapshot.inside,
            locks=locks,
            files=dict(self._files(node)),
            remote=self.remote,
            remotes=self.remotes,
            force=force,
            run_cache=self.run_cache,
            lost=node.lost,
            topic=self.topic,
        )

    def _files(self, node: Node) -> Iterator[tuple[str, bytes]]:
        """Yield what the stage reads and neither DVC's remote nor the snapshot has."""
        assert node.stage is not None  # noqa: S101
        root = self.repository.root
        paths = [Path(o.fs_path) for o in inputs_of(node.stage, node.sources) if not o.use_cache]
        paths += [Path(each.path) for each in node.sources if lock_of(each) is None]
        folders = [Path(dep.fs_path) for dep in node.stage.deps if dep.protocol == "local"]
        paths += [
            file for file in self.records.ignored if any(file.is_relative_to(f) for f in folders)
        ]
        for path in paths:
            for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
                if file.is_file() and file.is_relative_to(root):
                    yield str(file.relative_to(root)), file.read_bytes()

    def _take(self, node: Node, done: Done) -> None:
        """Take a worker's result: what dvc.lock records, and the outputs that git keeps."""
        stage, root = node.stage, self.repository.root
        assert stage is not None  # noqa: S101
        with self.repository.held():
            if done.outcome == Outcome.CACHED:
                return
            StageLoader.fill_from_lock(stage, dict(done.entry))
            stage.cmd_changed = False
            for name, content in done.files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            for out in stage.outs:
                if out.use_cache and out.protocol == "local":
                    Path(out.fs_path).parent.mkdir(parents=True, exist_ok=True)
                    out.ignore()
                self.shared.add(str(out.hash_info))
            self.records.add(stage)
            self.taken.add(stage)

    def finish(self) -> None:
        """Record all, and bring here what was made elsewhere, or its new version."""
        super().finish()
        stages = [node.stage for node in self.nodes if node.stage is not None]
        with self.repository.held() as repo:
            outs = [
                out for stage in stages for out in stage.outs
                if out.use_cache and out.hash_info
                and ((out.exists and stage in self.taken) or (not out.exists and self.fetch))
            ]  # fmt: skip
            if self.stop.is_set() or not (outs or self.taken):
                return
            try:
                if outs:
                    repo._reset()  # DVC has read the lock files of before
                    repo.pull([out.fs_path for out in outs], force=True)
                for stage in self.taken:
                    # As DVC does: plain files that git keeps are in no run-cache.
                    if all(o.use_cache or o.is_metric or o.is_plot for o in stage.outs):
                        repo.stage_cache.save(stage)
            # The results are in the remote, and dvc.lock names them.
            except Exception as error:
                self.say(f"results could not be fetched ({reason_of(error)}); try dvc pull")
