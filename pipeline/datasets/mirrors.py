"""Bring a data set's files from the first mirror that has them, with their pinned SHA-256."""

import logging
import lzma
import os
import shutil
import struct
import time
import zipfile
import zlib
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import unquote, urlsplit

import pooch
import requests
import urllib3
from pydantic import Field

from pipeline.core import paths
from pipeline.core.errors import DownloadError, OutputError, one_line
from pipeline.core.files import cannot_write, part_path, sha256, whole_file
from pipeline.core.params import Section, nearest
from pipeline.core.progress import Progress

ALREADY_THERE = "already there"
TRIES = 4
TIMEOUT_S = (10, 30)  # to connect, and between two packets
PIECE_BYTES = 1 << 16
SLOWEST_BYTES_PER_S = 1024
PATIENCE_S = 30.0  # before a mirror counts as too slow

pooch.get_logger().setLevel(logging.WARNING)  # progress is shown here


class RemoteFile(Section):
    """A file of a data set: its name on the mirrors, and its pinned content.

    With a ``member``, it is that file in a zip archive, and the hash is the archive's. Where the
    hash is null, what the first mirror gives is taken, and dvc.lock pins it.
    """

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")] | None
    member: str | None = None


class RemoteFiles(Section):
    """The files of a data set, by role: four, and the writers of the training images if known."""

    train_images: RemoteFile
    train_labels: RemoteFile
    test_images: RemoteFile
    test_labels: RemoteFile
    train_writers: RemoteFile | None = None


class MirrorSource(Section):
    """A data set on mirrors: URLs or folders, tried in order."""

    source: Literal["mirrors"]
    mirrors: list[str]
    files: RemoteFiles


class MirrorError(Exception):
    """Why a mirror could not supply a file."""


def mirrors_from_environment(dataset: str) -> list[str]:
    """Return the mirrors in ``<DATASET>_MIRRORS``, such as ``MNIST_MIRRORS``; they go first.

    The beginning of a name will do: those of ``mnist`` serve ``mnist_record`` as well.
    """
    words = dataset.split("_")
    names = ["_".join(words[:count]) for count in range(len(words), 0, -1)]
    listed = [os.environ.get(environment_variable(name), "").split(",") for name in names]
    return [mirror.strip() for each in listed for mirror in each if mirror.strip()]


def environment_variable(dataset: str) -> str:
    """Return the name of the variable that lists additional mirrors of a data set."""
    return f"{dataset.upper()}_MIRRORS"


def fetch(file: RemoteFile, mirrors: list[str], target: Path) -> str:
    """Bring a file to `target`, and return the mirror that supplied it.

    Mirrors are ``https://``, ``http://`` or ``file://`` URLs, or folders. The bytes are verified
    before they get the name `target`. A file that is already there with the right bytes is kept,
    and ``"already there"`` is returned.

    Raises
    ------
    DownloadError
        If no mirror has the right bytes; each is named with its reason.
    OutputError
        If `target` cannot be written.
    """
    reasons = []
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and sha256(target) == file.sha256:
            return ALREADY_THERE
        for mirror in mirrors:
            try:
                _fetch_from(mirror, file, target)
            except MirrorError as reason:
                print(f"{file.name}: {mirror}: {reason}", flush=True)
                reasons.append(f"{mirror}: {reason}")
            else:
                return mirror
    except OSError as error:
        raise cannot_write(target, error) from error
    raise DownloadError("; ".join(reasons) or "no mirror is listed")


def _fetch_from(mirror: str, file: RemoteFile, target: Path) -> None:
    url = urlsplit(mirror)
    if url.scheme in ("http", "https"):
        _download(f"{mirror.rstrip('/')}/{file.name}", file, target)
    elif url.scheme in ("", "file"):
        _copy(Path(unquote(url.path) if url.scheme else mirror) / file.name, file, target)
    else:
        raise MirrorError(f"{url.scheme}:// is not supported; use https://, file:// or a folder")


def _copy(source: Path, file: RemoteFile, target: Path) -> None:
    if not source.exists():
        source = _same_content(source.parent, file) or source
    part = part_path(target)
    try:
        origin = open(source, "rb")  # noqa: SIM115 - only opening it is the mirror's fault
    except OSError as error:
        raise MirrorError(f"{error.strerror}") from error
    try:
        with origin, open(part, "wb") as copy:
            shutil.copyfileobj(origin, copy, PIECE_BYTES)
        received = sha256(part)
        if file.sha256 not in (None, received):
            raise MirrorError(f"checksum mismatch (expected {file.sha256}, received {received})")
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)


def _same_content(folder: Path, file: RemoteFile) -> Path | None:
    """Return the file that has the pinned content under another name; None if there is none."""
    if file.sha256 is None or not folder.is_dir():
        return None
    others = (path for path in sorted(folder.iterdir()) if path.is_file())
    return next((path for path in others if sha256(path) == file.sha256), None)


def _download(url: str, file: RemoteFile, target: Path) -> None:
    part = part_path(target)  # pooch keeps a file that is there, if its hash is not known
    fetcher = pooch.create(
        target.parent,
        base_url="",
        registry={part.name: file.sha256 and f"sha256:{file.sha256}"},
        urls={part.name: url},
        retry_if_failed=TRIES - 1,
    )
    try:
        fetcher.fetch(part.name, downloader=_receive)
        part.replace(target)
    except requests.exceptions.HTTPError as error:
        raise MirrorError(f"HTTP {error.response.status_code} {error.response.reason}") from error
    except requests.exceptions.RequestException as error:
        raise MirrorError(f"{type(error).__name__}: {_deepest(error)}") from error
    except ValueError as error:
        raise MirrorError(f"checksum mismatch ({one_line(error)})") from error
    finally:
        part.unlink(missing_ok=True)


def _receive(url: str, path: str, _: pooch.Pooch) -> None:
    """Write what a mirror sends to `path`, unless it is too slow.

    pooch's own downloader decompresses files that a mirror labels as gzip-encoded, and notices only
    after a whole piece that hardly anything comes.
    """
    name = url.rpartition("/")[2]
    as_it_is = {"Accept-Encoding": "identity"}
    try:
        with (
            requests.get(url, stream=True, headers=as_it_is, timeout=TIMEOUT_S) as response,
            open(path, "wb") as file,
        ):
            response.raise_for_status()
            total = int(response.headers.get("Content-Length", 0))
            with _progress(name, total) as progress:
                while piece := response.raw.read1(PIECE_BYTES):  # what there is, however little
                    file.write(piece)
                    progress.advance(len(piece))
                    waited = time.monotonic() - progress.started
                    enough = progress.done >= waited * SLOWEST_BYTES_PER_S
                    if waited > PATIENCE_S and not enough and progress.done != total:
                        raise MirrorError(f"too slow: {progress.done:,} bytes in {waited:.0f} s")
    except urllib3.exceptions.HTTPError as error:  # requests wraps what it reads itself
        raise requests.exceptions.ConnectionError(error) from error


def _progress(name: str, total: int) -> Progress:
    return Progress(f"download {name}", total, "bytes", rate_unit="MB", rate_per_unit=1e-6)


def _deepest(error: BaseException) -> str:
    """Return what the first cause of a network error says."""
    while (cause := error.__cause__ or error.__context__) is not None:
        error = cause
    return getattr(error, "strerror", None) or one_line(error) or type(error).__name__


def fetch_all(dataset: str, source: MirrorSource, folder: Path) -> None:
    """Bring a data set's files to `folder`, one for each role.

    Raises
    ------
    DownloadError
        If no mirror has a file, or an archive lacks a member; each mirror is named with its reason,
        and the remedy.
    """
    mirrors = mirrors_from_environment(dataset) + source.mirrors
    archives: dict[str, Path] = {}
    try:
        for role in (*paths.ROLES, paths.WRITERS):
            file: RemoteFile | None = getattr(source.files, role)
            if file is None:
                continue
            target = folder / role
            if file.member is not None:
                target = archives.setdefault(file.name, folder / f"archive_{len(archives)}")
            origin = ALREADY_THERE
            if target not in archives.values() or not target.exists():
                origin = _fetch_for(dataset, file, mirrors, target)
            if file.member is not None:
                extract(target, file.member, folder / role)
            pin = "" if file.sha256 else f"; its SHA-256 is {sha256(target)}"
            print(f"{dataset}: {role}: {origin}{pin}", flush=True)
    finally:
        for archive in archives.values():
            archive.unlink(missing_ok=True)


def _fetch_for(dataset: str, file: RemoteFile, mirrors: list[str], target: Path) -> str:
    try:
        return fetch(file, mirrors, target)
    except DownloadError as error:
        raise DownloadError(
            f"{dataset}: no mirror supplied {file.name}: {error}; set "
            f"{environment_variable(dataset)} to a folder or URL that has it (separate several "
            "with commas)"
        ) from error


def extract(archive: Path, member: str, target: Path) -> None:
    """Write a member of a zip archive to `target`.

    Raises
    ------
    DownloadError
        If the archive is damaged, or has no such member.
    """
    try:
        with zipfile.ZipFile(archive) as files:
            if member not in files.namelist():
                raise DownloadError(
                    f"the archive has no member {member!r}; {nearest(member, files.namelist())}"
                )
            with files.open(member) as packed, whole_file(target) as file:
                shutil.copyfileobj(packed, file, PIECE_BYTES)
    except OutputError:
        raise
    # What zipfile lets through depends on the method of compression.
    except (
        zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, NotImplementedError,
        RuntimeError, ValueError, LookupError, struct.error,
    ) as error:  # fmt: skip
        raise DownloadError(
            f"{target.name}: its archive cannot be read as a zip file ({one_line(error)}); correct "
            "its name or hash in params.yaml"
        ) from error
