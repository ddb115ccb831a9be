"""A DVC repository, opened once and shared by the threads of a run; and the plan of its stages.

DVC's objects are not safe for threads. Whoever works with them holds the repository: a mutex
against the other threads of this process, and DVC's own lock against other processes. While a
stage's command runs, neither is held, as in ``dvc repro``.
"""

import re
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.lock import LockError
from dvc.repo import Repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.stage import PipelineStage

from dvc_flow.errors import FlowError, GraphError, one_line
from dvc_flow.policy import Policy, read_policy
from dvc_flow.remote import find_lost, inputs_of, is_recorded, only_misses

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.stage import Stage

MISSING = ("deleted ", "not in cache ")  # as in DVC's status
LOCK_WAIT_S = 600.0  # DVC itself gives up after 3 seconds, or waits forever


@dataclass(frozen=True)
class Selection:
    """Which stages a run is about, in the words of ``dvc repro``.

    Parameters
    ----------
    targets : sequence of str
        Stages, or files of stages; all of ``dvc.yaml`` here if there are none.
    single_item : bool
        Leave out the stages that they depend on.
    pipeline, all_pipelines : bool
        The whole pipelines of the targets, or of the repository.
    recursive, glob : bool
        Targets may be folders, or patterns.
    downstream : bool
        The targets and what depends on them, rather than what they depend on.
    """

    targets: Sequence[str] = ()
    single_item: bool = False
    pipeline: bool = False
    all_pipelines: bool = False
    recursive: bool = False
    glob: bool = False
    downstream: bool = False


@dataclass(frozen=True)
class Node:
    """A stage of the graph.

    Attributes
    ----------
    name : str
        As DVC addresses it from the current folder, such as ``train@small``.
    upstream : tuple of str
        The stages of the run that must finish first.
    policy : Policy
    changes : tuple of str
        Why DVC would run it, as far as known before its upstream stages have run; empty if it is
        up to date.
    missing : tuple of str
        Recorded files that are not in the workspace or the cache; they may come from a remote.
    lost : tuple of str
        Outputs that a run with ``--pull`` needs and cannot fetch, so that the stage has to run.
    in_git : tuple of str
        The files that it writes and git keeps, relative to the root: its lock file, outputs that
        DVC does not cache, and the .gitignore files of those that it does.
    stage : Stage
        DVC's own.
    sources : tuple of Stage
        All stages that it depends on, those that are not part of the run too.
    """

    name: str
    upstream: tuple[str, ...]
    policy: Policy
    changes: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    lost: tuple[str, ...] = ()
    in_git: tuple[str, ...] = ()
    stage: "Stage | None" = field(default=None, compare=False, repr=False)
    sources: "tuple[Stage, ...]" = field(default=(), compare=False, repr=False)

    def reasons(self, allow_missing: bool = False) -> tuple[str, ...]:
        """Return why the stage has to run; a missing file is a reason unless it is allowed."""
        return self.changes + self.lost + (() if allow_missing else self.missing)


class _Unlocked(Repo):  # type: ignore[misc]
    """A repository whose locks lie in a temporary folder of their own."""

    @cached_property
    def tmp_dir(self) -> str:
        self.folder = tempfile.TemporaryDirectory(prefix="dvc-flow-")
        return self.folder.name

    def _ignore(self) -> None:
        """Leave .dvc/.gitignore as it is."""


class Repository:
    """The DVC repository of the current folder.

    Parameters
    ----------
    to_plan : bool
        Open it only to plan, which works in a read-only checkout and beside a run too.

    Raises
    ------
    GraphError
        If there is none, or it cannot be opened.
    """

    def __init__(self, *, to_plan: bool = False) -> None:
        self._open(_Unlocked if to_plan else Repo)
        self.root = Path(self.dvc.root_dir)
        self.mutex = threading.Lock()
        self.holder: int | None = None

    def _open(self, kind: type[Repo]) -> None:
        with explained():
            self.dvc = kind()
        self.dvc._lock_depth = 1  # what DVC calls of its own does not lock once more

    @contextmanager
    def held(self) -> Iterator[Repo]:
        """Hold the repository while the block runs.

        Raises
        ------
        GraphError
            If another process holds DVC's lock for ten minutes; and for DVC's own errors.
        """
        with explained():
            self._take()
            try:
                yield self.dvc
            finally:
                self._give()

    @contextmanager
    def released(self) -> Iterator[None]:
        """Release the repository, which is held, while the block runs."""
        self.dvc._reset()  # others may change what DVC has read
        self._give()
        try:
            yield
        finally:
            self._take()

    def _take(self) -> None:
        self.mutex.acquire()
        self.holder = threading.get_ident()
        deadline = time.monotonic() + LOCK_WAIT_S
        try:
            while not self.dvc.lock.is_locked:
                try:
                    self.dvc.lock.lock()
                except LockError:
                    if time.monotonic() > deadline:
                        raise
        except BaseException:
            self._free()
            raise

    def _give(self) -> None:
        if self.holder != threading.get_ident():
            return  # it could not be taken again
        try:
            self.dvc.lock.unlock()
        finally:
            self._free()

    def _free(self) -> None:
        self.holder = None
        self.mutex.release()

    def plan(
        self,
        selection: Selection,
        *,
        force: bool = False,
        pull: bool = False,
        push: bool = False,
    ) -> list[Node]:
        """Return the selected stages, in the order in which ``dvc repro`` would run them.

        Parameters
        ----------
        selection : Selection
        force : bool
            Whether all stages will run.
        pull : bool
            Whether missing files may be fetched. What a stage that may run reads is needed; if it
            is neither in the cache nor in the remote, its producer may run as well.
        push : bool
            With `pull`, all outputs are needed, since the remote has to have them afterwards.

        Raises
        ------
        GraphError
            If a dvc.yaml cannot be read, has a cycle, or lacks a target; if the remote does not
            answer; or if needed data is nowhere and no stage produces it.
        PolicyError
            If a stage's ``meta`` is wrong.
        """
        try:
            with self.held() as repo:
                return self._plan(repo, selection, force, pull, push)
        except GraphError as error:
            _require_no_conflict(str(error))
            raise

    def _plan(
        self, repo: Repo, selection: Selection, force: bool, pull: bool, push: bool
    ) -> list[Node]:
        graph = get_active_graph(repo.index.graph)
        steps = _steps(repo, graph, selection)
        names = {stage: stage.addressing for stage in steps}
        sources = {stage: list(graph.successors(stage)) for stage in steps}
        changes = {stage: changes_of(stage, sources[stage]) for stage in steps}
        may_run = {stage for stage in steps if force or changes[stage][0]}
        lost = _find_lost(sources, may_run, push=push) if pull else {}
        earlier: dict[Stage, list[Stage]] = {stage: sources[stage] for stage in steps}
        if selection.single_item:  # in the order in which they are named
            for position, stage in enumerate(steps):
                neighbours = {*graph.successors(stage), *graph.predecessors(stage)}
                earlier[stage] = [each for each in steps[:position] if each in neighbours]
        return [
            Node(
                name=names[stage],
                upstream=tuple(sorted(names[each] for each in earlier[stage] if each in names)),
                policy=read_policy(
                    names[stage], stage.meta, bool(stage.is_import and not stage.frozen)
                ),
                changes=tuple(changes[stage][0]),
                missing=tuple(changes[stage][1]),
                lost=tuple(
                    f"{out} is neither in the cache nor in the remote"
                    for out in lost.get(stage, [])
                ),
                in_git=tuple(dict.fromkeys(_in_git(stage, self.root))),
                stage=stage,
                sources=tuple(sources[stage]),
            )
            for stage in steps
        ]

    def has_remote(self) -> bool:
        """Return whether DVC has any remote."""
        with explained():
            return bool(self.dvc.config["remote"])

    def use_cache(self, folder: Path) -> None:
        """Keep DVC's cache in a folder that other checkouts share.

        Raises
        ------
        GraphError
            If the configuration cannot be written.
        """
        with explained(), self.dvc.config.edit("local") as config:
            config.setdefault("cache", {})["dir"] = str(folder.expanduser())
        self._open(Repo)


def _steps(repo: Repo, graph: Any, selection: Selection) -> "list[Stage]":
    """Return the stages that ``dvc repro`` would reproduce, in its order."""
    wanted: list[Stage] = []
    if not selection.all_pipelines:
        wanted = collect_stages(
            repo, selection.targets or [PROJECT_FILE], selection.recursive, selection.glob
        )
        if selection.targets and not wanted:
            return []  # DVC would take no stages for all
    if selection.single_item and not (selection.pipeline or selection.all_pipelines):
        return wanted
    whole = selection.pipeline or selection.all_pipelines
    downstream = selection.downstream and not whole
    steps: list[Stage] = plan_repro(graph, wanted, selection.pipeline, downstream)
    return steps


@contextmanager
def explained() -> Iterator[None]:
    """Turn DVC's errors into one line."""
    try:
        yield
    except (FlowError, KeyboardInterrupt):
        raise
    except DvcException as error:
        raise GraphError(reason_of(error)) from error
    # DVC lets some of its libraries' errors through, such as those about a value in params.yaml.
    except Exception as error:
        raise GraphError(f"DVC: {one_line(error)}") from error


def reason_of(error: BaseException) -> str:
    """Return what DVC says of an error, and of its cause, in one line."""
    parts = [one_line(error)]
    cause = error.__cause__
    while cause is not None:
        told = one_line(cause)
        if told not in parts[-1]:
            parts.append(told)
        cause = cause.__cause__
    return "; ".join(parts)


def _require_no_conflict(message: str) -> None:
    """Check that no file that an error is about holds a conflict of a merge.

    Raises
    ------
    GraphError
        If one does; DVC would only say that it is corrupted.
    """
    for name in re.findall(r"'([^']+\.(?:lock|ya?ml|dvc))'", message):
        with suppress(OSError, UnicodeDecodeError):
            lines = Path(name).read_text(encoding="utf-8").splitlines()
            found = next((n for n, line in enumerate(lines, 1) if line.startswith("<<<<<<< ")), 0)
            if found:
                raise GraphError(
                    f"{name}: holds a merge conflict, in line {found}; resolve it, or take one "
                    f"side with git checkout --theirs {name}, and run again"
                )


def changes_of(stage: "Stage", sources: "Sequence[Stage]") -> tuple[list[str], list[str]]:
    """Return why DVC would run a stage, and which of its files are not here but were.

    Parameters
    ----------
    stage : Stage
    sources : sequence of Stage
        Those that it depends on.
    """
    status = [change for entries in stage.status().values() for change in _changes(entries)]
    if not status:
        return [], []
    inputs = inputs_of(stage, sources)
    was_here = {f"{how}{out}" for out in stage.outs if out.hash_info for how in MISSING} | {
        f"{how} {dep}"
        for dep in stage.deps
        for how in ("deleted", "modified")
        if only_misses(dep, inputs)
    }
    return (
        [change for change in status if change not in was_here],
        [change for change in status if change in was_here],
    )


def _find_lost(
    sources: "Mapping[Stage, Sequence[Stage]]", may_run: "set[Stage]", *, push: bool
) -> "dict[Stage, list[Output]]":
    """Return the outputs that are needed and nowhere, by the stage that has to make them.

    Parameters
    ----------
    sources : dict of Stage to sequence of Stage
        The stages, each one behind those that it depends on.
    may_run : set of Stage
        Those that changed.
    push : bool
        Whether all outputs are needed.
    """
    everything = [out for stage in sources for out in stage.outs if is_recorded(out)]
    nowhere = set(find_lost(everything)) if push or may_run else set()
    lost: dict[Stage, list[Output]] = {}
    if push:
        for out in nowhere:
            if out.stage.cmd:
                lost.setdefault(out.stage, []).append(out)
    while True:
        running = may_run | lost.keys()
        for stage in sources:  # what depends on a stage that runs may run
            if not running.isdisjoint(sources[stage]):
                running.add(stage)
        found = {
            out for stage in running for out in inputs_of(stage, sources[stage]) if out in nowhere
        } - {out for outs in lost.values() for out in outs}
        if not found:
            return lost
        for out in found:
            if not out.stage.cmd:
                raise GraphError(
                    f"{out}: is neither here, in DVC's cache nor in its remote, and no stage makes "
                    f"it; bring it back, or dvc push it from where it is"
                )
            lost.setdefault(out.stage, []).append(out)


def _changes(entries: list[Any]) -> Iterator[str]:
    """Yield each reason of a stage's status, such as ``modified params.yaml: train.seeds``."""
    for entry in entries:
        if isinstance(entry, str):
            yield entry
            continue
        for items in entry.values():
            for path, change in items.items():
                if isinstance(change, dict):
                    yield from (f"{how} {path}: {key}" for key, how in change.items())
                else:
                    yield f"{change} {path}"


def _in_git(stage: "Stage", root: Path) -> Iterator[str]:
    """Yield the files in git that a run of a stage may write."""
    written = [Path(lock_of(stage) or stage.path)]
    for out in stage.outs:
        if out.protocol == "local":
            path = Path(out.fs_path)
            written.append(path if not out.use_cache else path.with_name(".gitignore"))
    for path in written:
        with suppress(ValueError):  # outside the repository
            yield str(path.relative_to(root))


def lock_of(stage: "Stage") -> str | None:
    """Return the path of the lock file that records a stage; None if its own file does."""
    return str(stage.dvcfile._lockfile.path) if isinstance(stage, PipelineStage) else None
