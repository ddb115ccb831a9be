"""Run the stages of a plan on the workers of a cluster.

The coordinator decides what runs, as a local flow does, and alone writes dvc.lock.
"""

import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from typing import Any

from dvc.stage import PipelineStage
from dvc.stage.loader import StageLoader
from dvc.stage.serialize import to_lockfile

from dvc_flow.cluster.job import Address, Done, Job
from dvc_flow.cluster.snapshot import take_snapshot
from dvc_flow.cluster.workers import Cluster, WorkerDied
from dvc_flow.engine import Engine, Outcome
from dvc_flow.errors import ClusterError, StageFailed, one_line
from dvc_flow.remote import inputs_of, is_recorded, pull_data, push_data
from dvc_flow.repository import Node, changes_of, lock_of, reason_of

DEATHS = 3  # workers that a stage may take with it


class ClusterEngine(Engine):
    """Runs stages with a command on a cluster's workers, and the others here.

    Parameters
    ----------
    address, tls
        As `Cluster` takes them.
    fetch_made : bool
        Whether to fetch what the run makes, even where files may be missing.
    **how
        As `Engine` takes it.
    """

    def __init__(
        self,
        *given: Any,
        address: str,
        tls: Path | None = None,
        fetch_made: bool = False,
        **how: Any,
    ) -> None:
        if not how.get("commit", True):
            raise ClusterError("--no-commit: results come from a cluster through DVC's cache")
        super().__init__(*given, **(how | {"pull": True}))
        self.fetch_made = fetch_made
        self.fetch_all = not how.get("allow_missing")
        self.allow_missing = True
        self.address, self.tls = address, tls
        self.topic = f"dvc-flow-{uuid.uuid4()}"
        self.listeners: dict[str, Callable[[list[str]], None]] = {}
        self.shared: set[str] = set()  # the outputs that DVC's remote is known to have
        self.taken: set[Any] = set()  # the stages whose results are those of workers
        self.removed: set[str] = set()  # the outputs of which another version was here
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
                self.ran_on[node.name] = ", ".join(filter(None, [place.worker.name, done.device]))
                return self._take(node, done)
        finally:
            del self.listeners[job.stage]
        raise StageFailed(f"{node.name}: {DEATHS} workers died while they ran it")

    def _share_inputs(self, node: Node) -> None:
        """Send the stage's inputs to DVC's remote, unless they came from there."""
        assert node.stage is not None  # noqa: S101
        known = [out for out in inputs_of(node.stage, node.sources) if out.hash_info]
        # What the command goes on from.
        known += [out for out in node.stage.outs if out.persist and not out.changed_cache()]
        wanted = [out for out in known if out.use_cache and str(out.hash_info) not in self.shared]
        if wanted:
            try:
                push_data(node.stage.repo, wanted)
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

        def place(each: Any) -> Address:
            name = each.name if isinstance(each, PipelineStage) else None
            return str(Path(each.path).relative_to(root)), name

        return Job(
            stage=node.name,
            address=place(stage),
            sources=tuple(map(place, node.sources)),
            policy=node.policy,
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

    def _take(self, node: Node, done: Done) -> Outcome:
        """Take a worker's result: what dvc.lock records, and the outputs that git keeps.

        A stage that is unchanged there and was changed here is restored.
        """
        stage, root = node.stage, self.repository.root
        assert stage is not None  # noqa: S101
        with self.repository.held():
            self.taken.add(stage)
            StageLoader.fill_from_lock(stage, dict(done.entry))
            stage.cmd_changed = False
            for name, content in done.files.items():
                path = root / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(content)
            for out in stage.outs:
                if out.use_cache and out.protocol == "local":
                    if out.exists and out.changed_checksum():  # what follows must not find it
                        self.removed.add(out.fs_path)
                        out.remove()
                    Path(out.fs_path).parent.mkdir(parents=True, exist_ok=True)
                    out.ignore()
                self.shared.add(str(out.hash_info))
            if done.outcome == Outcome.CACHED:
                return Outcome.RESTORED
            self.records.add(stage)
            return Outcome(done.outcome)

    def finish(self) -> None:
        """Record all, and bring here what was made elsewhere, or its new version."""
        super().finish()
        if self.stop.is_set():
            return
        try:
            with self.repository.held() as repo:
                pull_data(repo, self._wanted())
                for stage in self.taken:
                    # As DVC does: plain files that git keeps are in no run-cache.
                    may_be_kept = all(o.use_cache or o.is_metric or o.is_plot for o in stage.outs)
                    if may_be_kept and all(dep.exists for dep in stage.deps):
                        repo.stage_cache.save(stage)
        # The results are in the remote, and dvc.lock names them.
        except Exception as error:
            self.say(f"results could not be fetched ({reason_of(error)}); try dvc pull")

    def _wanted(self) -> list[Any]:
        """Return the outputs that are to be here, as they are recorded now, when the run ends."""
        wanted: dict[str, Any] = {}
        for node in self.nodes:
            if node.stage is None:
                continue
            fetch = self.fetch_made and node.stage in self.taken
            outs = [out for out in node.stage.outs if out.use_cache and out.hash_info]
            for out in outs:
                if out.exists:  # in an older version, if git brought the record of another one
                    is_wanted = out.changed_cache() and out.changed_checksum()
                else:
                    is_wanted = self.fetch_all or fetch or out.fs_path in self.removed
                if is_wanted:
                    wanted[out.fs_path] = out
            if fetch:  # and what it was made of, as after a local run
                inputs = filter(is_recorded, inputs_of(node.stage, node.sources))
                wanted |= {out.fs_path: out for out in inputs if out.use_cache}
        return list(wanted.values())
