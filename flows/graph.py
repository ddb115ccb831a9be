"""dvc.yaml's graph, read through DVC: the stages, and which of them changed."""

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.config import NoRemoteError
from dvc.dvcfile import PROJECT_FILE
from dvc.exceptions import DvcException
from dvc.repo import Repo, lock_repo
from dvc.repo.reproduce import collect_stages, get_active_graph, plan_repro
from dvc.utils.serialize import modify_yaml, parse_yaml

from flows.errors import GraphError, one_line
from flows.policy import Policy, read_policy
from flows.remote import (
    find_lost,
    inputs_of,
    is_recorded,
    only_misses,
    push_files,
    push_runs,
)

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.stage import Stage


LOCK_FILE = "dvc.lock"
MISSING = ("deleted ", "not in cache ")  # as in DVC's status


@dataclass(frozen=True)
class Node:
    """A stage of the graph.

    Attributes
    ----------
    name : str
        As DVC addresses it, such as ``train@mnist-lenet5``.
    upstream : tuple of str
        The stages that must finish first.
    policy : Policy
    changes : tuple of str
        Why DVC would run it, as far as known before its upstream stages have run; empty if it is
        up to date.
    missing : tuple of str
        Recorded files that are not in the workspace or the cache; they may come from a remote.
    lost : tuple of str
        Outputs that a run with ``--pull`` needs and cannot fetch, so that the stage has to run.
    in_git : tuple of str
        The files that it writes and git keeps, relative to the root: outputs that DVC does not
        cache, and the .gitignore files of those that it does.
    """

    name: str
    upstream: tuple[str, ...]
    policy: Policy
    changes: tuple[str, ...]
    missing: tuple[str, ...]
    lost: tuple[str, ...]
    in_git: tuple[str, ...]

    def reasons(self, allow_missing: bool = False) -> tuple[str, ...]:
        """Return why the stage has to run; a missing file is a reason unless it is allowed."""
        return self.changes + self.lost + (() if allow_missing else self.missing)


def read_graph(
    root: Path,
    targets: Sequence[str] = (),
    *,
    force: bool = False,
    pull: bool = False,
    push: bool = False,
) -> list[Node]:
    """Return the stages that `targets` need, in topological order.

    Parameters
    ----------
    root : Path
        The DVC repository.
    targets : sequence of str
        As ``dvc repro`` takes them; all stages of dvc.yaml if there are none.
    force : bool
        Whether all stages will run.
    pull : bool
        Whether missing files may be fetched. What a stage that may run reads is needed; if it is
        neither in the cache nor in the remote, its producer may run as well.
    push : bool
        With `pull`, all outputs are needed, since the remote has to have them afterwards.

    Raises
    ------
    GraphError
        If the repository or its dvc.yaml cannot be read, has a cycle, or lacks a target; if the
        remote does not answer; or if needed data is nowhere and no stage produces it.
    PolicyError
        If a stage's ``meta`` is wrong.
    """
    with reading(root) as repo:
        graph = get_active_graph(repo.index.graph)
        wanted = collect_stages(repo, targets or [PROJECT_FILE])
        stages: list[Stage] = plan_repro(graph, wanted)
        upstream = {stage: list(graph.successors(stage)) for stage in stages}
        changes = {stage: changes_of(stage, upstream[stage]) for stage in stages}
        may_run = {stage for stage in stages if force or changes[stage][0]}
        lost = _find_lost(upstream, may_run, push=push) if pull else {}
        return [
            Node(
                name=stage.addressing,
                upstream=tuple(sorted(each.addressing for each in upstream[stage])),
                policy=read_policy(stage.addressing, stage.meta, bool(stage.is_import)),
                changes=tuple(changes[stage][0]),
                missing=tuple(changes[stage][1]),
                lost=tuple(
                    f"{out} is neither in the cache nor in the remote"
                    for out in lost.get(stage, [])
                ),
                in_git=tuple(_in_git(stage, root.resolve())),
            )
            for stage in stages
        ]


def changes_of(stage: "Stage", upstream: Sequence["Stage"]) -> tuple[list[str], list[str]]:
    """Return why DVC would run a stage, and which of its files are not here but were.

    Parameters
    ----------
    stage : Stage
    upstream : sequence of Stage
        Those that it depends on.
    """
    inputs = inputs_of(stage, upstream)
    was_here = {f"{how}{out}" for out in stage.outs if out.hash_info for how in MISSING} | {
        f"{how} {dep}"
        for dep in stage.deps
        for how in ("deleted", "modified")
        if only_misses(dep, inputs)
    }
    status = list(_changes(stage.status(check_updates=True)))
    return (
        [change for change in status if change not in was_here],
        [change for change in status if change in was_here],
    )


def _find_lost(
    upstream: Mapping["Stage", Sequence["Stage"]], may_run: set["Stage"], *, push: bool
) -> dict["Stage", list["Output"]]:
    """Return the outputs that are needed and nowhere, by the stage that has to make them.

    Parameters
    ----------
    upstream : dict of Stage to sequence of Stage
        The stages, each one behind those that it depends on.
    may_run : set of Stage
        Those that changed.
    push : bool
        Whether all outputs are needed.
    """
    everything = [out for stage in upstream for out in stage.outs if is_recorded(out)]
    nowhere = set(find_lost(everything)) if push or may_run else set()
    lost: dict[Stage, list[Output]] = {}
    if push:
        for out in nowhere:
            if out.stage.cmd:
                lost.setdefault(out.stage, []).append(out)
    while True:
        running = may_run | lost.keys()
        for stage in upstream:  # what depends on a stage that runs may run
            if not running.isdisjoint(upstream[stage]):
                running.add(stage)
        found = {
            out for stage in running for out in inputs_of(stage, upstream[stage]) if out in nowhere
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


@contextmanager
def reading(root: Path) -> Iterator[Repo]:
    """Open a repository under its lock, in its folder, to which DVC's names are relative."""
    with _explained(root), chdir(root), Repo(str(root)) as repo, lock_repo(repo):
        yield repo


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turn DVC's errors into one line."""
    try:
        yield
    except DvcException as error:
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        cause = error.__cause__
        if cause is not None and str(cause) not in str(error):
            lines.append(str(cause).splitlines()[0])
        raise GraphError(f"{root}: {'; '.join(lines)}") from error


def _changes(status: dict[str, list[Any]]) -> Iterator[str]:
    """Yield each reason of a DVC status, such as ``modified params.yaml: train.seeds``."""
    for entries in status.values():
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
    """Yield what git keeps of a stage's outputs: the file, or the .gitignore that lists it."""
    for out in stage.outs:
        path = Path(out.fs_path)
        kept = path if not out.use_cache else path.with_name(".gitignore")
        if kept.is_relative_to(root):
            yield str(kept.relative_to(root))


def require_remote(root: Path) -> None:
    """Check that DVC has a default remote.

    Raises
    ------
    GraphError
        If there is none.
    """
    with _explained(root), Repo(str(root)) as repo:
        try:
            repo.cloud.get_remote()
        except NoRemoteError:
            raise GraphError(
                f"{root}: DVC has no default remote; add one with dvc remote add --default NAME URL"
            ) from None


def push_outputs(root: Path, nodes: Sequence[Node]) -> None:
    """Send the stages' outputs to DVC's remotes, and their runs, so that others can restore them.

    Raises
    ------
    GraphError
        If a remote does not take them.
    """
    names = {node.name for node in nodes}
    with reading(root) as repo:
        stages = [stage for stage in repo.index.stages if stage.addressing in names]
        outs = [out for stage in stages for out in stage.outs if out.use_cache and out.hash_info]
        try:
            if outs:
                push_files(repo, outs)
                repo.push([out.fs_path for out in outs])
            push_runs(repo, stages)
        # Each kind of remote has a library of its own, with errors of its own.
        except Exception as error:
            raise GraphError(
                f"{root}: the results could not be sent to DVC's remote ({one_line(error)}); they "
                "are in DVC's cache here: run again when the remote answers"
            ) from error


def use_cache(root: Path, folder: Path) -> None:
    """Make a checkout keep DVC's cache in a folder that others share.

    Raises
    ------
    GraphError
        If the repository cannot be read, or its configuration cannot be written.
    """
    try:
        with _explained(root), Repo(str(root)) as repo, repo.config.edit("local") as config:
            config.setdefault("cache", {})["dir"] = str(folder.expanduser())
    except OSError as error:
        raise GraphError(f"{root}: DVC's configuration cannot be written ({error})") from error


def order_lock(root: Path, nodes: Sequence[Node]) -> None:
    """Put the stages in dvc.lock in the order in which ``dvc repro`` would have written them.

    DVC keeps existing entries and appends new ones in the order of the graph. Stages that run in
    parallel are recorded as they finish, in a different order each time.

    Parameters
    ----------
    root : Path
    nodes : sequence of Node
        In the order of `read_graph`.
    """
    path = root / LOCK_FILE
    if not path.exists():
        return
    with _explained(root):
        now = _stages_of(path.read_text(encoding="utf-8"), str(path))
    committed = subprocess.run(  # noqa: S603
        ["git", "show", f"HEAD:./{LOCK_FILE}"],  # noqa: S607
        cwd=root,
        capture_output=True,
        text=True,
        check=False,
    )
    before: list[str] = []
    with suppress(DvcException):  # a damaged commit has no order to keep
        before = _stages_of(committed.stdout, f"HEAD:{LOCK_FILE}")
    # What is in neither, such as a stage of another target, comes last.
    wanted = sorted(now, key=[*before, *(node.name for node in nodes), *now].index)
    if now != wanted:
        with reading(root), modify_yaml(path) as lock:
            lock["stages"] = {name: lock["stages"][name] for name in wanted}


def _stages_of(text: str, name: str) -> list[str]:
    return list(parse_yaml(text, name).get("stages", {}))


def metrics_against_head(root: Path) -> list[dict[str, Any]]:
    """Return a row for each changed metric: file, name, old and new value, and the change."""
    with Repo(str(root)) as repo:
        changes = repo.metrics.diff(all=True).get("diff", {})
    return [
        {
            "file": path,
            "metric": name,
            "HEAD": values.get("old"),
            "workspace": values.get("new"),
            "change": values.get("diff"),
        }
        for path, metrics in changes.items()
        for name, values in metrics.items()
    ]
