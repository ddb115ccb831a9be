"""Find damaged files of DVC's own, and remove them.

DVC restores a read-only object of its cache without checking it; and if it was killed while writing
its list of running commands, it rejects every command. ``dvc-flow verify`` checks every object that
dvc.lock names; a run checks those that it restores.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dvc.lock import LockError, make_lock
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK
from dvc.stage.cache import _can_hash, _get_stage_hash
from dvc.stage.serialize import to_single_stage_lockfile

from dvc_flow.remote import deps_as_now
from dvc_flow.repository import Repository

if TYPE_CHECKING:
    from dvc.output import Output
    from dvc.stage import Stage

JUDGED = "md5"  # DVC 3's. An object of DVC 2 is named by a hash of its text, not of its bytes.


def remove_damaged(stage: "Stage", *, run_cache: bool) -> list[str]:
    """Remove cached objects that would be restored for a stage, and do not match their name.

    The stage then runs again.

    Parameters
    ----------
    stage : Stage
    run_cache : bool
        Whether an earlier run with the same inputs may be restored.

    Returns
    -------
    list of str
        The outputs that had one.
    """
    if not _can_hash(stage):
        return []
    cache = stage.repo.stage_cache
    if (
        not stage.changed_stage()
        and stage.deps_cached()
        and all(bool(out.hash_info) for out in stage.outs)
    ):
        entry = to_single_stage_lockfile(stage)
    else:
        entry = _earlier_run(stage) if run_cache else None
    return _remove(cache._create_stage(entry, wdir=stage.wdir).outs) if entry else []


def _earlier_run(stage: "Stage") -> Any:
    """Return the run-cache's entry for what the stage's dependencies are now, if there is one."""
    with deps_as_now(stage):
        cache = stage.repo.stage_cache
        # DVC fails on an empty folder, which it leaves if it is killed before it writes the entry.
        with suppress(OSError):
            Path(cache._get_cache_dir(_get_stage_hash(stage))).rmdir()
        return cache._load(stage)


def remove_all_damaged(repository: Repository) -> list[str]:
    """Remove cached objects whose content does not match their name.

    They are then fetched from a remote, or their stage runs again.

    Returns
    -------
    list of str
        The outputs that had one.

    Raises
    ------
    GraphError
        If the repository cannot be read.
    """
    with repository.held() as repo:
        return _remove([out for out in repo.index.outs if out.use_cache and out.hash_info])


def _remove(outs: "list[Output]") -> list[str]:
    damaged = []
    for out in outs:
        if not out.hash_info or out.hash_info.name != JUDGED or out.protocol != "local":
            continue
        broken = [path for path in _objects(out) if not _is_whole(path)]
        for path in broken:
            path.unlink(missing_ok=True)
        if broken:
            damaged.append(str(out))
    return damaged


def remove_half_written_lock(root: Path) -> bool:
    """Remove DVC's list of running commands if DVC was killed while writing it.

    Nothing is lost: the list only says what is being read and written now.

    Parameters
    ----------
    root : Path
        The DVC repository.

    Returns
    -------
    bool
        Whether it was removed.
    """
    folder = root / ".dvc/tmp"
    try:
        # Whoever writes it holds this lock.
        with make_lock(str(folder / RWLOCK_LOCK), tmp_dir=str(folder)):
            try:
                json.loads((folder / RWLOCK_FILE).read_bytes())
            except ValueError:
                (folder / RWLOCK_FILE).unlink()
                return True
    except (OSError, LockError):  # there is none, or it is being written
        pass
    return False


def _objects(out: "Output") -> Iterator[Path]:
    """Yield the cached files of an output that are there; of a folder, its list first."""
    first = Path(out.cache.oid_to_path(out.hash_info.value))
    if not first.is_file():
        return
    yield first
    if first.suffix == ".dir" and _is_whole(first):
        for entry in json.loads(first.read_bytes()):
            path = Path(out.cache.oid_to_path(entry[JUDGED]))
            if path.is_file():
                yield path


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return digest == path.parent.name + path.stem


def main() -> int:
    """Remove damaged objects and name their outputs; return 1 if there were any."""
    repository = Repository()
    if remove_half_written_lock(repository.root):
        print("DVC's list of running commands was half-written, and is removed")
    damaged = remove_all_damaged(repository)
    for name in damaged:
        print(
            f"error: {name}: its copy in DVC's cache was damaged, and is removed", file=sys.stderr
        )
    print(f"{len(damaged)} damaged" if damaged else "every cached object is whole")
    return bool(damaged)
