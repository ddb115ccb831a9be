"""Mirrors that are down, slow, elsewhere, cut off, or serve something else: then the same bytes."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import download, paths
from pipeline.errors import DownloadError
from tests.conftest import Mirror, edit_params, no_parts

pytestmark = pytest.mark.faults

Break = Callable[[Mirror], object]


def down(mirror: Mirror) -> None:
    mirror.faults = ["500"] * 100


def slow(mirror: Mirror) -> None:
    mirror.faults = ["trickle"] * 100


def cut(mirror: Mirror) -> None:
    mirror.resumes = False
    mirror.faults = ["cut"] * 100


def html(mirror: Mirror) -> None:
    mirror.faults = ["html"] * 100


def wrong(mirror: Mirror) -> None:
    mirror.content = {name: body[:-1] + b"?" for name, body in mirror.content.items()}


def gone(mirror: Mirror) -> None:
    mirror.content = {}


def elsewhere(mirror: Mirror) -> None:
    mirror.redirects = dict.fromkeys(mirror.content, "http://192.0.2.1/file")


def round_and_round(mirror: Mirror) -> None:
    mirror.redirects = {name: f"{mirror.url}/{name}" for name in mirror.content}


@pytest.fixture
def served(project: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Set the project's only mirror to a real server; return what it serves."""
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(download, "LONGEST_WAIT_S", 0.02)
    monkeypatch.setattr(download, "PATIENCE_S", 0.3)
    folder = project.parent / "mirror"
    mirror.content = {path.name: path.read_bytes() for path in folder.iterdir()}
    edit_params(
        project / "params.yaml",
        lambda params: params["datasets"]["tiny"]["download"].update(mirrors=[mirror.url]),
    )
    return dict(mirror.content)


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (down, r"HTTP 500 Internal Server Error \(4 tries\)"),
        (slow, "too slow: [0-9,]+ bytes in"),
        (cut, r"cut off after [0-9,]+ of [0-9,]+ bytes|ProtocolError|IncompleteRead"),
        (html, "checksum mismatch"),
        (wrong, "checksum mismatch"),
        (gone, "HTTP 404 Not Found"),
        (elsewhere, "plain http is refused"),
        (round_and_round, "TooManyRedirects"),
    ],
)
def test_a_mirror_that_fails_is_named_and_once_it_is_well_the_bytes_are_right(
    served: dict[str, bytes], mirror: Mirror, fault: Break, reason: str
) -> None:
    """The mirror is named with its reason, nothing stays, and the next run has the right bytes."""
    fault(mirror)
    with pytest.raises(DownloadError, match=reason) as error:
        download.main("tiny")
    assert "\n" not in str(error.value)
    assert mirror.url in str(error.value)
    assert not any(path.is_file() and path.suffix == "" for path in paths.raw("tiny").rglob("*"))
    mirror.faults, mirror.redirects, mirror.content = [], {}, served
    download.main("tiny")
    assert {path.name: path.read_bytes() for path in paths.raw("tiny").iterdir()} == served
    assert no_parts(paths.raw("tiny"))


def test_a_mirror_where_nobody_listens_is_named(project: Path) -> None:
    """A port without a server is named, with the remedy."""
    edit_params(
        project / "params.yaml",
        lambda params: params["datasets"]["tiny"]["download"].update(
            mirrors=["http://127.0.0.1:9"]
        ),
    )
    with pytest.raises(DownloadError, match=r"Connection refused .*; set TINY_MIRRORS to a folder"):
        download.main("tiny")
