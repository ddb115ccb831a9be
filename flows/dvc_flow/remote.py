"""The stages' outputs and earlier runs in DVC's cache and remotes: find, fetch and send them."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from typing import TYPE_CHECKING, Any

from dvc.config import NoRemoteError, RemoteConfigError
from dvc.fs import HTTPFileSystem, generic
from dvc.stage.cache import _can_hash, _get_cache_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile
from dvc_data.hashfile.db import get_index
from dvc_data.hashfile.tree import Tree
from dvc_objects.errors import ObjectFormatError

from dvc_flow.errors import GraphError, one_line

if TYPE_CHECKING:
    from dvc.dependency import Dependency
    from dvc.output import Output
    from dvc.repo import Repo
    from dvc.stage import Stage

    from dvc_flow.repository import Node, Repository


def inputs_of(stage: "Stage", upstream: Iterable["Stage"]) -> list["Output"]:
    """Return the outputs of other stages that overlap a stage's dependencies."""
    outs = [out for each in upstream for out in each.outs]
    return [out for out in outs if any(_overlap(out, dep) for dep in stage.deps)]


def _overlap(one: "Output", other: "Output") -> bool:
    if one.protocol != other.protocol:
        return False
    parts = one.fs.parts(one.fs_path), other.fs.parts(other.fs_path)
    shorter = min(map(len, parts))
    return bool(parts[0][:shorter] == parts[1][:shorter])


def is_recorded(out: "Output") -> bool:
    """Return whether an output is in dvc.lock but not in the workspace."""
    return bool(out.hash_info) and not out.exists


def only_misses(dep: "Dependency", outs: Iterable["Output"]) -> bool:
    """Return whether a dependency is unchanged, apart from outputs that are not in the workspace.

    Parameters
    ----------
    dep : Dependency
        A file or a folder.
    outs : iterable of Output
        The outputs that overlap it.
    """
    missing = [out for out in outs if _overlap(out, dep) and is_recorded(out)]
    if not dep.hash_info or not missing:
        return False
    top = dep.fs.parts(dep.fs_path)
    if missing[0].fs.parts(missing[0].fs_path) == top:
        return bool(missing[0].hash_info == dep.hash_info)
    files: dict[tuple[str, ...], tuple[Any, Any]] = {}  # by place below the dependency
    if dep.exists and dep.hash_info.isdir:
        _, _, here = dep._build(
            dep.local_cache, dep.fs_path, dep.fs, dep.hash_name, ignore=dep.dvcignore, dry_run=True
        )
        files = {key: (meta, hash_info) for key, meta, hash_info in here}
    for out in missing:
        below = out.fs.parts(out.fs_path)
        recorded = _list_of(out) if out.hash_info.isdir else [((), out.meta, out.hash_info)]
        if recorded is None:
            return True  # its content is unknown; if it is needed, its stage runs again
        for key, meta, hash_info in recorded:
            place = (*below, *key)
            if place[: len(top)] == top:
                files[place[len(top) :]] = meta, hash_info
    if not dep.hash_info.isdir:
        return () in files and bool(files[()][1] == dep.hash_info)
    # A folder's hash is that of the list of its files.
    tree = Tree()
    for key, (meta, hash_info) in files.items():
        tree.add(key, meta, hash_info)
    tree.digest()
    return bool(tree.hash_info == dep.hash_info)


def _list_of(out: "Output") -> Tree | None:
    """Return the list of a folder's files, from the cache or the remote; None if there is none."""
    with suppress(FileNotFoundError, ObjectFormatError):
        return Tree.load(out.cache, out.hash_info)
    with _answering(out), suppress(FileNotFoundError, ObjectFormatError, RemoteConfigError):
        remote = remote_of(out)
        return Tree.load(remote, out.hash_info) if remote is not None else None
    return None


def remote_of(out: "Output") -> Any:
    """Return the store of the remote that keeps an output; None if there is no remote."""
    try:
        return out.repo.cloud.get_remote_odb(out.remote, "pull", hash_name=out.hash_info.name)
    except NoRemoteError:
        return None


def find_lost(outs: Sequence["Output"]) -> list["Output"]:
    """Return the outputs of which a file is neither in the cache nor in the remote.

    Parameters
    ----------
    outs : sequence of Output
        Recorded in dvc.lock, and not in the workspace.

    Raises
    ------
    GraphError
        If the remote does not answer.
    """
    lost: list[Output] = []
    answered: set[str | None] = set()
    for out in outs:
        if out.stage.is_import:
            continue  # DVC fetches it from where it came
        if not out.use_cache:
            lost.append(out)
            continue
        with _answering(out):
            try:
                remote = remote_of(out)
            except RemoteConfigError:
                continue  # a versioned remote, which DVC asks by version
            if remote is not None and out.remote not in answered:
                _require_answer(remote)
                answered.add(out.remote)
            tree = _list_of(out) if out.hash_info.isdir else None
            if out.hash_info.isdir and tree is None:
                lost.append(out)
                continue
            wanted = {hash_info.value for _, _, hash_info in tree or ()} | {out.hash_info.value}
            absent = {oid for oid in wanted if not out.cache.exists(oid)}
            if absent and remote is not None:
                absent -= set(remote.oids_exist(absent))
            if absent:
                lost.append(out)
    return lost


def _require_answer(remote: Any) -> None:
    """Raise an error if a remote is unreachable: asked for a file, some only deny having it."""
    try:
        remote.fs.info(remote.path)
    except FileNotFoundError as error:
        if isinstance(error.__cause__, OSError):  # no answer, rather than an answer of "not found"
            raise error.__cause__ from error


@contextmanager
def _answering(out: "Output") -> Iterator[None]:
    try:
        yield
    # Each kind of remote has a library of its own, with errors of its own.
    except Exception as error:
        name = out.remote or out.repo.config["core"].get("remote")
        raise GraphError(
            f"DVC's remote {name!r} does not answer ({one_line(error)}); nothing was run: try "
            "again when it does, or leave out --pull"
        ) from error


@contextmanager
def deps_as_now(stage: "Stage") -> Iterator[None]:
    """Let a stage have the hashes of what its dependencies are now, while the block runs.

    Afterwards it has those of before again: DVC still has to see what changed. It would otherwise
    take the outputs that dvc.lock records for those of the new dependencies.
    """
    before = [dep.__dict__ | {"hash_info": deepcopy(dep.hash_info)} for dep in stage.deps]
    try:
        stage.save_deps()
        yield
    finally:
        for dep, state in zip(stage.deps, before, strict=True):
            dep.__dict__.clear()
            dep.__dict__.update(state)


def fetch_run(repo: "Repo", stage: "Stage") -> None:
    """Fetch a stage's earlier runs with the same inputs from the remote's run-cache.

    ``dvc repro --pull`` copies all entries of all stages for each stage that it runs; this only
    those of one stage, with the files that they name.
    """
    runs = _runs_of(repo, "fetch")
    if runs is None:
        return
    with deps_as_now(stage):
        if not _can_hash(stage):
            return  # never in the run-cache, for example a stage that always runs
        key = _get_stage_hash(stage)
    folder = runs.fs.join(runs.path, "runs", key[:2], key)
    if not runs.fs.exists(folder):
        return
    cache = repo.stage_cache
    for source in runs.fs.find(folder):
        value = runs.fs.name(source)
        repo.cache.legacy.makedirs(cache._get_cache_dir(key))
        generic.copy(runs.fs, source, repo.cache.legacy.fs, cache._get_cache_path(key, value))
        entry = cache._load_cache(key, value)
        if entry:
            earlier = cache._create_stage(entry, wdir=stage.wdir)
            for hashes in earlier.get_used_objs().values():
                repo.cloud.pull(hashes)


def push_runs(repo: "Repo", stages: Iterable["Stage"]) -> None:
    """Send the stages' run-cache entries to the remote, with the outputs that git keeps.

    ``dvc push --run-cache`` copies all entries at each call, and leaves out the outputs that git
    keeps, without which no stage that writes one can be restored in another clone.
    """
    runs = _runs_of(repo, "push")
    if runs is None:
        return
    cache = repo.stage_cache
    for stage in stages:
        # A stage whose inputs are missing did not run here.
        if not all(dep.exists for dep in stage.deps) or not _can_hash(stage):
            continue
        key = _get_stage_hash(stage)
        value = _get_cache_hash(to_single_stage_lockfile(stage))
        source, local = cache._get_cache_path(key, value), repo.cache.legacy.fs
        target = runs.fs.join(runs.path, "runs", key[:2], key, value)
        if local.exists(source) and not runs.fs.exists(target):
            runs.fs.makedirs(runs.fs.parent(target))
            generic.copy(local, source, runs.fs, target)
    repo.cloud.push(
        [
            out.hash_info
            for stage in stages
            for out in stage.outs
            if out.hash_info and not out.use_cache and repo.cache.local.exists(out.hash_info.value)
        ]
    )


def push_outputs(repository: "Repository", nodes: "Sequence[Node]") -> None:
    """Send the stages' outputs to DVC's remotes, and their runs, so that others can restore them.

    Raises
    ------
    GraphError
        If a remote does not take them.
    """
    stages = [node.stage for node in nodes if node.stage is not None]
    with repository.held() as repo:
        outs = [out for stage in stages for out in stage.outs if out.use_cache and out.hash_info]
        try:
            push_data(repo, outs)
            push_runs(repo, stages)
        # Each kind of remote has a library of its own, with errors of its own.
        except Exception as error:
            raise GraphError(
                f"{repository.root}: the results could not be sent to DVC's remote "
                f"({one_line(error)}); they are in DVC's cache here: run again when the remote "
                "answers"
            ) from error


def _runs_of(repo: "Repo", command: str) -> Any:
    """Return the store of the default remote's run-cache; None if it cannot have one."""
    try:
        store = repo.cloud.get_remote_odb(None, f"{command} --run-cache", hash_name="md5-dos2unix")
    except RemoteConfigError:  # NoRemoteError too
        return None
    return None if isinstance(store.fs, HTTPFileSystem) else store


def push_data(repo: "Repo", outs: Iterable["Output"]) -> None:
    """Send outputs to their remotes.

    ``dvc push`` sends imports, and what goes to versioned remotes. For the rest it is avoided: it
    reads the whole repository first, and assumes that a remote which has the list of a folder's
    files has the files as well, so it would never send one again that was collected there.

    Raises
    ------
    OSError
        If some could not be sent.
    """
    rest = []
    by_remote: dict[str, tuple[Any, set[Any], set[Any]]] = {}  # its files of folders, and outputs
    for out in outs:
        remote = _plain_remote(out)
        if remote is None:
            rest.append(out)
        elif out.can_push:
            _, files, objects = by_remote.setdefault(remote.path, (remote, set(), set()))
            objects.add(out.hash_info)
            tree = _list_of(out) if out.hash_info.isdir else None
            files.update(hash_info for _, _, hash_info in tree or ())
    for remote, files, objects in by_remote.values():
        if files:
            with closing(get_index(remote)) as index:  # DVC's notes on what the remote has
                index.clear()
        failed = [
            each
            for some in (files, objects)
            if some
            for each in repo.cloud.push(some, odb=remote).failed
        ]
        if failed:
            raise OSError(f"{len(failed)} files could not be sent")
    if rest:
        repo.push([out.fs_path for out in rest])


def pull_data(repo: "Repo", outs: Iterable["Output"]) -> None:
    """Fetch recorded outputs from their remotes, if the cache lacks them, into the workspace.

    ``dvc pull`` fetches imports, and what comes from versioned remotes. For the rest it is avoided:
    for each path that it is given it reads all of dvc.yaml and dvc.lock, twice.

    Raises
    ------
    OSError, DvcException
        If some could not be fetched, or cannot be put there.
    """
    rest, plain = [], []
    by_remote: dict[str, tuple[Any, Any, set[Any]]] = {}  # its store, our cache, what that lacks
    for out in outs:
        remote = _plain_remote(out)
        if remote is None:
            rest.append(out)
            continue
        plain.append(out)
        tree = _list_of(out) if out.hash_info.isdir else None
        objects = {out.hash_info, *(hash_info for _, _, hash_info in tree or ())}
        _, _, absent = by_remote.setdefault(remote.path, (remote, out.cache, set()))
        absent.update(each for each in objects if not out.cache.exists(each.value))
    for remote, cache, absent in by_remote.values():
        if absent:
            repo.cloud.pull(absent, odb=remote)
        missing = sum(not cache.exists(each.value) for each in absent)
        if missing:
            raise OSError(f"{missing} of {len(absent)} files are not in the remote")
    for out in plain:
        out.checkout(force=True)
    if rest:
        repo.pull([out.fs_path for out in rest], force=True)


def _plain_remote(out: "Output") -> Any:
    """Return the store of an output's remote; None for imports, and if the remote is versioned."""
    with suppress(RemoteConfigError):
        return None if out.stage.is_import or not out.is_in_repo else remote_of(out)
    return None
