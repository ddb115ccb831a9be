"""A workspace's own files, as an archive that other machines unpack; DVC's data are not in it.

The archive holds the bytes that lie in the workspace, committed or not. It is taken without writing
anything to git, and it is the same for the same files.
"""

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from dvc_flow.errors import GraphError

NEVER = (".git", ".dvc/tmp", ".dvc/cache", ".dvc/config.local")


@dataclass(frozen=True)
class Snapshot:
    """The files of a workspace.

    Attributes
    ----------
    project : str
        Names the project: clones of one git repository share it.
    digest : str
        Of the files, their names and whether they are executable.
    archive : bytes
        A compressed tar file.
    inside : str
        The DVC repository's root, relative to the top of the archive.
    """

    project: str
    digest: str
    archive: bytes
    inside: str


def take_snapshot(root: Path, needed: Collection[Path], data: Collection[Path]) -> Snapshot:
    """Return a snapshot of a DVC repository's files.

    Parameters
    ----------
    root : Path
        The repository's.
    needed : collection of Path
        Files and folders that stages read; they are taken even if git ignores them.
    data : collection of Path
        DVC's outputs, which are left out.

    Raises
    ------
    GraphError
        If a file cannot be read.
    """
    top = Path(_git(root, "rev-parse", "--show-toplevel").strip() or root)
    names = set(_listed(top)) if (top / ".git").exists() else set(_below(top, top))
    for path in needed:
        if path.is_relative_to(top) and os.path.lexists(path):
            names.update(_below(path, top) if path.is_dir() else [str(path.relative_to(top))])
    left_out = {str(path.relative_to(top)) for path in data if path.is_relative_to(top)}
    inside = os.path.relpath(root, top)
    left_out |= {os.path.normpath(f"{inside}/{name}") for name in NEVER} | {".git"}
    kept = [name for name in sorted(names) if not _is_in(name, left_out)]
    try:
        plain = _archive(top, kept)
    except OSError as error:
        raise GraphError(f"{error.filename}: cannot be read ({error.strerror})") from error
    first = _git(root, "rev-list", "--max-parents=0", "HEAD").split() or [str(root)]
    project = hashlib.sha256(first[-1].encode()).hexdigest()[:16]
    digest = hashlib.sha256(plain).hexdigest()
    return Snapshot(project, digest, gzip.compress(plain, compresslevel=1, mtime=0), inside)


def _git(root: Path, *words: str) -> str:
    """Return what git answers; nothing if there is no repository, or no git."""
    with suppress(OSError):
        done = subprocess.run(  # noqa: S603
            ["git", *words],  # noqa: S607
            cwd=root, capture_output=True, text=True, errors="surrogateescape", check=False,
        )  # fmt: skip
        return done.stdout if done.returncode == 0 else ""
    return ""


def _listed(top: Path) -> Iterator[str]:
    """Yield the files that git keeps, or would keep, those of submodules too."""
    tracked = _git(top, "ls-files", "-z", "--cached", "--recurse-submodules")
    others = _git(top, "ls-files", "-z", "--others", "--exclude-standard")
    yield from (name for name in (tracked + others).split("\0") if name)


def _below(folder: Path, top: Path) -> Iterator[str]:
    for path, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if name not in (".git", "__pycache__")]
        links = [name for name in folders if (Path(path) / name).is_symlink()]
        yield from (str((Path(path) / name).relative_to(top)) for name in [*files, *links])


def _is_in(name: str, folders: Collection[str]) -> bool:
    parts = Path(name).parts
    return any("/".join(parts[:count]) in folders for count in range(1, len(parts) + 1))


def _archive(top: Path, names: Collection[str]) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name in names:
            path = top / name
            if not os.path.lexists(path) or (path.is_dir() and not path.is_symlink()):
                continue  # deleted, or a submodule that is not there
            entry = archive.gettarinfo(path, name)
            entry.uid = entry.gid = 0
            entry.uname = entry.gname = ""
            entry.mtime = 0
            entry.mode = 0o755 if entry.mode & 0o100 else 0o644
            if entry.islnk():  # a second name of a file: its content once more
                entry.type, entry.size = tarfile.REGTYPE, path.stat().st_size
            if entry.isreg():
                with open(path, "rb") as file:
                    archive.addfile(entry, file)
            elif entry.issym():
                archive.addfile(entry)
    return stream.getvalue()


def unpack(archive: Path, folder: Path, notes: Path) -> None:
    """Give a folder the files of an archive, and take away those of an earlier one.

    Files that are there and unchanged are left alone, and so is what is not of an archive.

    Parameters
    ----------
    archive : Path
    folder : Path
    notes : Path
        A file that remembers what was unpacked.
    """
    before: dict[str, list[int]] = {}
    digest = ""
    with suppress(FileNotFoundError, ValueError):
        digest, before = json.loads(notes.read_text())
    same = digest == archive.name
    if same and all(_state(folder / name) == state for name, state in before.items()):
        return
    notes.unlink(missing_ok=True)  # until all is done
    folder.mkdir(parents=True, exist_ok=True)
    after: dict[str, list[int]] = {}
    with tarfile.open(archive) as packed:
        entries = {entry.name: entry for entry in packed}
        for name in before.keys() - entries.keys():
            _remove(folder / name)
        for name, entry in entries.items():
            if not same or _state(folder / name) != before.get(name):
                _remove(folder / name)
                packed.extract(entry, folder, filter="tar")
                # DVC takes a file of the same size and time for unchanged.
                os.utime(folder / name, follow_symlinks=False)
            after[name] = _state(folder / name)
    notes.write_text(json.dumps([archive.name, after]))


def _state(path: Path) -> list[int]:
    try:
        state = os.lstat(path)
    except OSError:
        return []
    return [state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        with suppress(FileNotFoundError, NotADirectoryError):
            path.unlink()
