import hashlib
import struct
from pathlib import Path

import numpy as np
import pytest

from pipeline import download, idx, paths
from pipeline.download import DigitsSource, RemoteFile, fetch, make_digits
from pipeline.errors import DownloadError, OutputError
from pipeline.files import sha256
from pipeline.params import Params
from tests.conftest import Mirror, assert_one_clear_line, edit_params, no_parts, run_stage

CONTENT = bytes(range(256)) * 2000  # several pieces
FILE = RemoteFile(name="images.gz", sha256=hashlib.sha256(CONTENT).hexdigest())


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(download, "LONGEST_WAIT_S", 0.02)


@pytest.fixture
def good(mirror: Mirror) -> Mirror:
    mirror.content[FILE.name] = CONTENT
    return mirror


@pytest.fixture
def folder_mirror(tmp_path: Path) -> Path:
    folder = tmp_path / "folder mirror"
    folder.mkdir()
    (folder / FILE.name).write_bytes(CONTENT)
    return folder


def test_a_file_comes_over_http(good: Mirror, tmp_path: Path) -> None:
    """A file is fetched over HTTP, and only its final name stays."""
    target = tmp_path / "raw" / "images"
    assert fetch(FILE, [good.url], target) == good.url
    assert target.read_bytes() == CONTENT
    assert no_parts(tmp_path)


@pytest.mark.parametrize("as_url", [True, False])
def test_a_file_comes_from_a_folder(folder_mirror: Path, tmp_path: Path, as_url: bool) -> None:
    """A mirror may be a folder or a file:// URL."""
    mirror = folder_mirror.as_uri() if as_url else str(folder_mirror)
    fetch(FILE, [mirror], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_the_right_bytes_are_not_fetched_again(good: Mirror, tmp_path: Path) -> None:
    """A file that is there with the right bytes is not fetched again."""
    (tmp_path / "images").write_bytes(CONTENT)
    assert fetch(FILE, [good.url], tmp_path / "images") == "already there"
    assert good.ranges == []


def test_wrong_bytes_are_replaced(good: Mirror, tmp_path: Path) -> None:
    """A file that is there with wrong bytes is replaced."""
    (tmp_path / "images").write_bytes(b"wrong")
    fetch(FILE, [good.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_a_server_error_is_tried_again(good: Mirror, tmp_path: Path) -> None:
    """A server error is tried again at the same mirror."""
    good.faults = ["500", "500"]
    fetch(FILE, [good.url], tmp_path / "images")
    assert len(good.ranges) == 3


def test_a_cut_connection_is_resumed(good: Mirror, tmp_path: Path) -> None:
    """A download that is cut off goes on from where it stopped."""
    good.faults = ["cut"]
    fetch(FILE, [good.url], tmp_path / "images")
    first, second = good.ranges
    assert first is None
    assert second is not None
    assert 0 < int(second.removeprefix("bytes=").rstrip("-")) <= len(CONTENT) // 2
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_a_mirror_that_cannot_resume_begins_anew(good: Mirror, tmp_path: Path) -> None:
    """Where the mirror ignores the range, the download begins anew."""
    good.faults, good.resumes = ["cut"], False
    fetch(FILE, [good.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


@pytest.mark.parametrize("left", [b"wrong bytes", CONTENT + b"too long"])
def test_a_wrong_part_of_an_earlier_run_is_thrown_away(
    good: Mirror, tmp_path: Path, left: bytes
) -> None:
    """What an earlier run left is not trusted: if it comes out wrong, the download begins anew."""
    (tmp_path / "images.part").write_bytes(left)
    fetch(FILE, [good.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_the_next_mirror_is_tried(good: Mirror, tmp_path: Path, folder_mirror: Path) -> None:
    """After wrong bytes from one mirror, the next one is tried."""
    good.content[FILE.name] = b"wrong"
    assert fetch(FILE, [good.url, str(folder_mirror)], tmp_path / "images") == str(folder_mirror)


def test_each_mirror_is_named_with_its_reason(good: Mirror, tmp_path: Path) -> None:
    """Where all mirrors fail, each is named with its reason."""
    good.faults = ["html"]
    wrong = hashlib.sha256(b"<html>Please log in</html>").hexdigest()
    mirrors = [
        good.url,
        f"{good.url}/elsewhere",
        "http://127.0.0.1:9",
        str(tmp_path / "nowhere"),
        "ftp://127.0.0.1",
        "http://mirror.invalid",
    ]
    with pytest.raises(DownloadError) as error:
        fetch(FILE, mirrors, tmp_path / "images")
    reasons = dict(zip(mirrors, str(error.value).split("; h"), strict=False))
    assert f"checksum mismatch (expected {FILE.sha256}, received {wrong})" in reasons[good.url]
    for reason in (
        "elsewhere: HTTP 404 Not Found",
        "127.0.0.1:9: ConnectionError: Connection refused (4 tries)",
        "nowhere: No such file or directory",
        "ftp:// is not known",
        "plain http is refused",
    ):
        assert reason in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_one_clear_error(good: Mirror, small_disk: Path) -> None:
    """A full disk is an error of the disk, not of the mirror, and leaves nothing."""
    with pytest.raises(OutputError, match=r"images: cannot be written \(No space left"):
        fetch(FILE, [good.url], small_disk / "images")
    assert list(small_disk.iterdir()) == []


def test_mirrors_of_the_environment_go_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """<DATASET>_MIRRORS lists mirrors, separated by commas."""
    monkeypatch.setenv("MNIST_MIRRORS", " /a, file:///b ,")
    assert download.mirrors_from_environment("mnist") == ["/a", "file:///b"]


def test_the_stage_fetches_every_file(project: Path) -> None:
    """The stage leaves one file for each role, with the pinned bytes."""
    download.main("tiny")
    files = Params().content["datasets"]["tiny"]["download"]["files"]
    for role in paths.ROLES:
        assert sha256(paths.raw("tiny") / role) == files[role]["sha256"]


def test_no_mirror_is_one_clear_line_with_the_remedy(project: Path) -> None:
    """Where no mirror has a file, one line names it, the mirrors and the remedy."""

    def change(params: dict) -> None:  # type: ignore[type-arg]
        params["datasets"]["tiny"]["download"]["mirrors"] = ["/nowhere", "http://127.0.0.1:9/"]

    edit_params(project / "params.yaml", change)
    assert_one_clear_line(
        run_stage("download", "tiny", cwd=project),
        "tiny: no mirror supplied train_images",
        "/nowhere: No such file or directory",
        "127.0.0.1:9/: ConnectionError",
        "set TINY_MIRRORS to a folder or URL",
    )
    assert not (project / paths.raw("tiny")).exists() or no_parts(project)


def test_digits_lie_as_in_mnist_and_are_split_by_class() -> None:
    """The digits fill 20×20 in the middle of 28×28, and each class is split alike."""
    source = DigitsSource(source="scikit-learn digits", test_fraction=0.2, seed=0)
    digits = make_digits(source)
    assert digits["train_images"].shape == (1437, 28, 28)
    assert digits["test_images"].shape == (360, 28, 28)
    assert digits["train_images"][:, 4:24, 4:24].max() == 255
    frame = digits["train_images"].copy()
    frame[:, 4:24, 4:24] = 0
    assert not frame.any()
    counts = np.bincount(digits["test_labels"])
    assert counts.min() >= 34
    assert counts.max() <= 38
    for role, array in make_digits(source).items():
        np.testing.assert_array_equal(array, digits[role])


def test_digits_need_no_network(project: Path) -> None:
    """The digits are made without a network, as plain IDX files."""
    download.main("digits")
    assert idx.read(paths.raw("digits") / "test_labels", 1).shape == (360,)
    with open(paths.raw("digits") / "train_images", "rb") as file:
        assert struct.unpack(">4I", file.read(16)) == (0x803, 1437, 28, 28)


def test_a_redirect_to_plain_http_is_refused(good: Mirror, tmp_path: Path) -> None:
    """A mirror may redirect, but not to plain http elsewhere; nothing is sent there."""
    good.redirects = {FILE.name: "http://192.0.2.1/images.gz"}
    with pytest.raises(DownloadError, match=r"plain http is refused.*redirects to http://192\.0"):
        fetch(FILE, [good.url], tmp_path / "images")
    good.content["moved.gz"] = CONTENT
    good.redirects = {FILE.name: f"{good.url}/moved.gz"}
    fetch(FILE, [good.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_a_mirror_that_trickles_is_given_up(
    good: Mirror, tmp_path: Path, folder_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that sends a byte now and then never times out; the next one is taken."""
    monkeypatch.setattr(download, "PATIENCE_S", 0.5)
    good.faults = ["trickle"]
    assert fetch(FILE, [good.url, str(folder_mirror)], tmp_path / "images") == str(folder_mirror)
    assert (tmp_path / "images").read_bytes() == CONTENT
