"""Atomic files: written under another name next to their place, then renamed."""

import fcntl
import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import OutputError

PART_SUFFIX = ".part"


def part_path(path: Path) -> Path:
    """Return the name under which `path` is written until it is complete."""
    return path.with_name(path.name + PART_SUFFIX)


@contextmanager
def whole_file(path: Path, mode: str = "wb") -> Iterator[IO[Any]]:
    """Open a file that gets the name `path` only when the block ends without an error.

    Parameters
    ----------
    path : Path
        Its folder is created if it is missing.
    mode : {"wb", "w"}
        Text is written as UTF-8 with Unix line ends.

    Raises
    ------
    OutputError
        If the folder or the file cannot be written: no permission, or the disk is full.
    """
    part = part_path(path)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, mode, **text) as file:  # type: ignore[call-overload]
            yield file
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise cannot_write(path, error) from error
    finally:
        with suppress(OSError):
            part.unlink(missing_ok=True)


def require_writable(*paths: Path) -> None:
    """Check that files can be written, before long work whose results they take.

    Raises
    ------
    OutputError
        If a file cannot be created next to one of `paths`.
    """
    for path in paths:
        probe = part_path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise cannot_write(path, error) from error


def try_lock(path: Path) -> int | None:
    """Lock a file, which is created if it is missing.

    Returns
    -------
    int or None
        A descriptor that holds the lock until it is closed or its process dies, or None if another
        process holds it.

    Raises
    ------
    OutputError
        If the file cannot be created.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    except OSError as error:
        raise cannot_write(path, error) from error
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        return None
    return descriptor


def cannot_write(path: Path, error: OSError) -> OutputError:
    """Return the error for a `path` that could not be written, with a remedy."""
    return OutputError(
        f"{path}: cannot be written ({error.strerror or error}); nothing was left half-written: "
        "make the folder writable or free some space, then run again"
    )


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, as hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` atomically."""
    with whole_file(path, "w") as file:
        file.write(text)


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Write `content` to `path` atomically, as indented JSON with keys in the order given."""
    write_text(path, json.dumps(content, indent=2) + "\n")
