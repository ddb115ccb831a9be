"""Find damaged files of DVC's own, and remove them.

DVC restores a read-only object of its cache without checking it; and if it was killed while writing
its list of running commands, it rejects every command. ``python -m flows.verify`` checks every
object that dvc.lock names; a flow checks those that it may restore.
"""

import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from dvc.lock import LockError, make_lock
from dvc.rwlock import RWLOCK_FILE, RWLOCK_LOCK

from flows.errors import FlowError
from flows.graph import reading

if TYPE_CHECKING:
    from dvc.output import Output


def remove_damaged(root: Path, *, only_missing: bool = False) -> list[str]:
    """Remove cached objects whose content does not match their name.

    They are then fetched from a remote, or their stage runs again.

    Parameters
    ----------
    root : Path
        The DVC repository.
    only_missing : bool
        Check only outputs that are not in the workspace, and would be restored.

    Returns
    -------
    list of str
        The outputs that had one.

    Raises
    ------
    GraphError
        If the repository cannot be read.
    """
    damaged = []
    with reading(root) as repo:
        for out in repo.index.outs:
            if out.use_cache and out.hash_info and not (only_missing and out.exists):
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
            path = Path(out.cache.oid_to_path(entry["md5"]))
            if path.is_file():
                yield path


def _is_whole(path: Path) -> bool:
    with open(path, "rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
    return digest == path.parent.name + path.stem


def main() -> int:
    """Remove damaged objects and name their outputs; return 1 if there were any."""
    if remove_half_written_lock(Path.cwd()):
        print("DVC's list of running commands was half-written, and is removed")
    try:
        damaged = remove_damaged(Path.cwd())
    except FlowError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for name in damaged:
        print(
            f"error: {name}: its copy in DVC's cache was damaged, and is removed", file=sys.stderr
        )
    print(f"{len(damaged)} damaged" if damaged else "every cached object is whole")
    return bool(damaged)


if __name__ == "__main__":
    sys.exit(main())
