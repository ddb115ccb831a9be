"""Fetch a data set's four IDX files, or make them from the digits that scikit-learn carries."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import unquote, urlsplit

import numpy as np
import requests
import urllib3
from numpy.typing import NDArray
from pydantic import Field
from requests.adapters import HTTPAdapter
from tenacity import Retrying, retry_if_exception, stop_after_attempt, wait_exponential_jitter

from pipeline import idx, paths
from pipeline.errors import DownloadError
from pipeline.files import cannot_write, part_path, sha256
from pipeline.params import Params, Section
from pipeline.progress import Progress
from pipeline.stage import require_unchanged, run_stage

TRIES = 4
FIRST_WAIT_S = 0.5
LONGEST_WAIT_S = 10.0
TIMEOUT_S = (10, 30)  # to connect, and between two packets
SLOWEST_BYTES_PER_S = 1024
PATIENCE_S = 30.0  # before a mirror is called too slow
PIECE_BYTES = 1 << 16
PLAIN_HTTP_REFUSED = "plain http is refused; use https://, file:// or a folder"
LOOPBACK = ("localhost", "127.0.0.1", "::1")

DIGIT_BOX = 20  # MNIST's layout: the digit fills 20×20 in the middle of 28×28
DIGIT_SIZE = 28


class RemoteFile(Section):
    """One file of a data set: its name on the mirrors, and its pinned content."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class RemoteFiles(Section):
    """The four files of a data set, by what they hold."""

    train_images: RemoteFile
    train_labels: RemoteFile
    test_images: RemoteFile
    test_labels: RemoteFile


class MirrorSource(Section):
    """A data set that lies on mirrors: URLs or folders, tried in order."""

    source: Literal["mirrors"]
    mirrors: list[str]
    files: RemoteFiles


class DigitsSource(Section):
    """The UCI handwritten digits that scikit-learn carries, split here."""

    source: Literal["scikit-learn digits"]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: Annotated[int, Field(ge=0)]


Source = Annotated[MirrorSource | DigitsSource, Field(discriminator="source")]


class MirrorError(Exception):
    """Why one mirror could not supply a file."""


class _PassingFaultError(Exception):
    """A fault that may pass: worth another try at the same mirror."""


class _RefusingAdapter(HTTPAdapter):
    """Refuses plain http, to which a mirror may redirect, but on the loopback."""

    def send(self, request: requests.PreparedRequest, *args: Any, **kwargs: Any) -> Any:
        """Send a request, or refuse it."""
        if urlsplit(request.url or "").hostname not in LOOPBACK:
            raise MirrorError(f"{PLAIN_HTTP_REFUSED} (it redirects to {request.url})")
        return super().send(request, *args, **kwargs)


def mirrors_from_environment(dataset: str) -> list[str]:
    """Return the mirrors in ``<DATASET>_MIRRORS``, such as ``MNIST_MIRRORS``; they go first."""
    listed = os.environ.get(environment_variable(dataset), "")
    return [mirror.strip() for mirror in listed.split(",") if mirror.strip()]


def environment_variable(dataset: str) -> str:
    """Return the name of the variable that lists a data set's own mirrors."""
    return f"{dataset.upper()}_MIRRORS"


def fetch(file: RemoteFile, mirrors: list[str], target: Path) -> str:
    """Bring a file's pinned bytes to `target` from the first mirror that has them.

    A file that is already there with the right bytes is left alone. The bytes are checked before
    they take the name `target`, and an interrupted download is taken up where it stopped.

    Parameters
    ----------
    file : RemoteFile
        Name on the mirrors, and SHA-256.
    mirrors : list of str
        ``https://`` or ``file://`` URLs, or folders; ``http://`` on the loopback only.
    target : Path
        Where the file shall be.

    Returns
    -------
    str
        The mirror that supplied it, or ``"already there"``.

    Raises
    ------
    DownloadError
        If no mirror has the right bytes; each one is named with its reason.
    OutputError
        If `target` cannot be written.
    """
    reasons = []
    part = part_path(target)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.is_file() and sha256(target) == file.sha256:
            return "already there"
        for mirror in mirrors:
            try:
                _fetch_checked(file, mirror, part)
            except MirrorError as reason:
                print(f"{file.name}: {mirror}: {reason}", flush=True)
                reasons.append(f"{mirror}: {reason}")
            else:
                part.replace(target)
                return mirror
    except OSError as error:
        with suppress(OSError):
            part.unlink(missing_ok=True)
        raise cannot_write(target, error) from error
    raise DownloadError("; ".join(reasons) or "no mirror is listed")


def _fetch_checked(file: RemoteFile, mirror: str, part: Path) -> None:
    """Complete `part` from one mirror; a resumed one that comes out wrong is begun anew once."""
    resumed = part.is_file() and part.stat().st_size > 0
    _fetch_from(mirror, file.name, part)
    received = sha256(part)
    if received != file.sha256 and resumed:
        part.unlink()
        _fetch_from(mirror, file.name, part)
        received = sha256(part)
    if received != file.sha256:
        part.unlink()
        raise MirrorError(f"checksum mismatch (expected {file.sha256}, received {received})")


def _fetch_from(mirror: str, name: str, part: Path) -> None:
    url = urlsplit(mirror)
    if url.scheme in ("http", "https"):
        if url.scheme == "http" and url.hostname not in LOOPBACK:
            raise MirrorError(PLAIN_HTTP_REFUSED)
        retrying = Retrying(
            stop=stop_after_attempt(TRIES),
            wait=wait_exponential_jitter(
                multiplier=FIRST_WAIT_S, max=LONGEST_WAIT_S, jitter=FIRST_WAIT_S
            ),
            retry=retry_if_exception(lambda error: isinstance(error, _PassingFaultError)),
            reraise=True,
        )
        try:
            retrying(_fetch_over_http, f"{mirror.rstrip('/')}/{name}", name, part)
        except _PassingFaultError as fault:
            raise MirrorError(f"{fault} ({TRIES} tries)") from fault
    elif url.scheme in ("", "file"):
        _copy(Path(unquote(url.path) if url.scheme else mirror) / name, name, part)
    else:
        raise MirrorError(f"{url.scheme}:// is not known; use https://, file:// or a folder")


def _copy(source: Path, name: str, part: Path) -> None:
    try:
        origin = open(source, "rb")  # noqa: SIM115 - only its opening is the mirror's fault
    except OSError as error:
        raise MirrorError(f"{error.strerror}") from error
    with origin, open(part, "wb") as copy, _bar(name, source.stat().st_size) as progress:
        while piece := origin.read(PIECE_BYTES):
            copy.write(piece)
            progress.advance(len(piece))


def _fetch_over_http(url: str, name: str, part: Path) -> None:
    start = part.stat().st_size if part.exists() else 0
    with requests.Session() as session:
        session.mount("http://", _RefusingAdapter())
        _fetch_in_session(session, url, name, part, start)


def _fetch_in_session(
    session: requests.Session, url: str, name: str, part: Path, start: int
) -> None:
    with _http_faults():
        response = session.get(
            url,
            # A byte range counts encoded bytes: ask for the file as it is.
            headers={"Accept-Encoding": "identity"}
            | ({"Range": f"bytes={start}-"} if start else {}),
            stream=True,
            timeout=TIMEOUT_S,
        )
    with response:
        if response.status_code == requests.codes.requested_range_not_satisfiable:
            part.unlink()
            raise _PassingFaultError("the mirror cannot resume")
        if response.status_code >= 500 or response.status_code == requests.codes.too_many_requests:
            raise _PassingFaultError(f"HTTP {response.status_code} {response.reason}")
        if response.status_code not in (requests.codes.ok, requests.codes.partial_content):
            raise MirrorError(f"HTTP {response.status_code} {response.reason}")
        resumes = bool(
            response.status_code == requests.codes.partial_content
            and re.match(rf"bytes {start}-", response.headers.get("Content-Range", ""))
        )
        done = start if resumes else 0
        total = done + int(response.headers.get("Content-Length", 0))
        with open(part, "ab" if resumes else "wb") as file, _bar(name, total) as progress:
            begin = time.monotonic()
            while True:
                with _http_faults():
                    # What has come, however little, so that a slow mirror is noticed.
                    piece = response.raw.read1(PIECE_BYTES)
                if not piece:
                    break
                waited = time.monotonic() - begin
                if waited > PATIENCE_S and done - start < waited * SLOWEST_BYTES_PER_S:
                    raise MirrorError(f"too slow: {done - start:,} bytes in {waited:.0f} s")
                file.write(piece)
                done += len(piece)
                progress.advance(len(piece))
        if done < total:
            raise _PassingFaultError(f"cut off after {done:,} of {total:,} bytes")


@contextmanager
def _http_faults() -> Iterator[None]:
    """Tell the faults of the network, which may pass, from those of the disk."""
    try:
        yield
    except (requests.exceptions.InvalidURL, requests.exceptions.MissingSchema) as error:
        raise MirrorError(f"not a URL ({error})") from error
    except (requests.exceptions.RequestException, urllib3.exceptions.HTTPError) as error:
        cause: BaseException = error
        while (deeper := cause.__cause__ or cause.__context__) is not None:
            cause = deeper
        reason = getattr(cause, "strerror", None) or type(cause).__name__
        raise _PassingFaultError(f"{type(error).__name__}: {reason}") from error


def _bar(name: str, total: int) -> Progress:
    return Progress(f"download {name}", total, "bytes", rate_unit="MB", rate_per_unit=1e-6)


def fetch_all(dataset: str, source: MirrorSource, folder: Path) -> None:
    """Fetch a data set's four files to `folder`, one for each role.

    Raises
    ------
    DownloadError
        If no mirror has a file; each mirror is named with its reason, and the remedy.
    """
    mirrors = mirrors_from_environment(dataset) + source.mirrors
    for role in paths.ROLES:
        file: RemoteFile = getattr(source.files, role)
        try:
            origin = fetch(file, mirrors, folder / role)
        except DownloadError as error:
            raise DownloadError(
                f"{dataset}: no mirror supplied {file.name}: {error}; set "
                f"{environment_variable(dataset)} to a folder or URL that has it (several are "
                "separated by commas)"
            ) from error
        print(f"{dataset}: {role}: {origin}", flush=True)


def make_digits(source: DigitsSource) -> dict[str, NDArray[np.uint8]]:
    """Return scikit-learn's 1,797 digits in MNIST's layout, split into training and test set.

    Each 8×8 image of 0…16 is scaled to a 20×20 box in the middle of 28×28 pixels of 0…255.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository (1998), https://doi.org/10.24432/C50P49.

    Returns
    -------
    dict
        For each of `paths.ROLES` images (n, 28, 28) or labels (n,), as uint8.
    """
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    enlarge = DIGIT_BOX / digits.images.shape[1]
    boxes = zoom(digits.images / 16, (1, enlarge, enlarge), order=1)  # (1797, 20, 20)
    margin = (DIGIT_SIZE - DIGIT_BOX) // 2
    images = np.pad(np.rint(boxes * 255), ((0, 0), (margin, margin), (margin, margin)))
    split = train_test_split(
        images.astype(np.uint8),
        digits.target.astype(np.uint8),
        test_size=source.test_fraction,
        random_state=source.seed,
        stratify=digits.target,
    )
    train_images, test_images, train_labels, test_labels = split
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }


def main(dataset: str) -> None:
    """Bring the raw files of `dataset` to their folder."""
    params = Params()
    source: MirrorSource | DigitsSource = params.get(f"datasets.{dataset}.download", Source)
    if isinstance(source, MirrorSource):
        fetch_all(dataset, source, paths.raw(dataset))
    else:
        for role, array in make_digits(source).items():
            idx.write(paths.raw(dataset) / role, array)
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
