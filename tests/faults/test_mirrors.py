"""Mirrors that are down, slow, cut off, moved, or serve something else."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline import download
from pipeline.core import paths
from pipeline.core.errors import DownloadError
from pipeline.datasets import mirrors
from tests.helpers import Mirror, edit_params

pytestmark = [pytest.mark.faults, pytest.mark.usefixtures("no_waits")]

Break = Callable[[Mirror], object]


def down(mirror: Mirror) -> None:
    mirror.faults = ["500"] * 100


def slow(mirror: Mirror) -> None:
    mirror.faults = ["trickle"] * 100


def cut(mirror: Mirror) -> None:
    mirror.faults = ["cut"] * 100


def html(mirror: Mirror) -> None:
    mirror.faults = ["html"] * 100


def wrong(mirror: Mirror) -> None:
    mirror.content = {name: body[:-1] + b"?" for name, body in mirror.content.items()}


def gone(mirror: Mirror) -> None:
    mirror.content = {}


def elsewhere(mirror: Mirror) -> None:
    mirror.redirects = dict.fromkeys(mirror.content, "http://127.0.0.1:9/file")


def round_and_round(mirror: Mirror) -> None:
    mirror.redirects = {name: f"{mirror.url}/{name}" for name in mirror.content}


@pytest.fixture
def served(project: Path, mirror: Mirror, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Set the project's only mirror to a real server; return what it serves."""
    monkeypatch.setattr(mirrors, "PATIENCE_S", 0.3)
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
        (down, "HTTP 500 Internal Server Error"),
        (slow, "too slow: [0-9,]+ bytes in"),
        (cut, "IncompleteRead"),
        (html, "checksum mismatch"),
        (wrong, "checksum mismatch"),
        (gone, "HTTP 404 Not Found"),
        (elsewhere, "Connection refused"),
        (round_and_round, "TooManyRedirects"),
    ],
)
def test_a_mirror_that_fails_is_named_and_later_supplies_the_right_bytes(
    served: dict[str, bytes], mirror: Mirror, fault: Break, reason: str
) -> None:
    """The mirror is named with its reason, nothing remains, and the next run has the right bytes."""
    fault(mirror)
    with pytest.raises(DownloadError, match=reason) as error:
        download.main("tiny")
    assert "\n" not in str(error.value)
    assert mirror.url in str(error.value)
    assert list(paths.raw("tiny").iterdir()) == []
    mirror.faults, mirror.redirects, mirror.content = [], {}, served
    download.main("tiny")
    assert {path.name: path.read_bytes() for path in paths.raw("tiny").iterdir()} == served


def test_a_mirror_where_nobody_listens_is_named(project: Path) -> None:
    """If no server listens, the error says so and suggests a fix."""
    edit_params(
        project / "params.yaml",
        lambda params: params["datasets"]["tiny"]["download"].update(
            mirrors=["http://127.0.0.1:9"]
        ),
    )
    with pytest.raises(DownloadError, match="Connection refused; set TINY_MIRRORS to a folder"):
        download.main("tiny")
