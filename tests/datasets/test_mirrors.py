import hashlib
import io
import time
import zipfile
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from pipeline.core import paths
from pipeline.core.errors import DownloadError, OutputError
from pipeline.core.files import sha256
from pipeline.datasets import mirrors
from pipeline.datasets.mirrors import MirrorSource, RemoteFile, fetch, fetch_all
from tests.helpers import Mirror, make_images, write_raw

CONTENT = bytes(range(256)) * 2000  # several pieces
pytestmark = pytest.mark.usefixtures("no_waits")

DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = RemoteFile(name="images.gz", sha256=DIGEST)


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


def test_a_file_is_downloaded_over_http(good: Mirror, tmp_path: Path) -> None:
    """A file is downloaded over HTTP, and nothing but it remains."""
    target = tmp_path / "raw" / "images"
    assert fetch(FILE, [good.url], target) == good.url
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("as_url", [True, False])
def test_a_file_is_copied_from_a_folder(folder_mirror: Path, tmp_path: Path, as_url: bool) -> None:
    """A mirror may be a folder or a file:// URL."""
    mirror = folder_mirror.as_uri() if as_url else str(folder_mirror)
    target = tmp_path / "raw" / "images"
    assert fetch(FILE, [mirror], target) == mirror
    assert target.read_bytes() == CONTENT
    assert list(target.parent.iterdir()) == [target]


def test_correct_bytes_are_not_fetched_again(good: Mirror, tmp_path: Path) -> None:
    """A file that already has the pinned bytes is kept, and no mirror is asked."""
    (tmp_path / "images").write_bytes(CONTENT)
    assert fetch(FILE, [good.url], tmp_path / "images") == "already there"
    assert good.asked == []


def test_wrong_bytes_are_replaced(good: Mirror, tmp_path: Path) -> None:
    """A file with other bytes than the pinned ones is replaced."""
    (tmp_path / "images").write_bytes(b"wrong")
    fetch(FILE, [good.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


@pytest.mark.parametrize("fault", ["500", "cut", "html"])
def test_a_passing_fault_is_retried(good: Mirror, tmp_path: Path, fault: str) -> None:
    """A server error, a cut connection or wrong bytes are retried at the same mirror."""
    good.faults = [fault, fault]
    assert fetch(FILE, [good.url], tmp_path / "images") == good.url
    assert (tmp_path / "images").read_bytes() == CONTENT
    assert len(good.asked) == 3


def test_a_mirror_is_given_up_after_some_tries(good: Mirror, tmp_path: Path) -> None:
    """A mirror whose fault persists is given up after a fixed number of tries."""
    good.faults = ["500"] * 100
    with pytest.raises(DownloadError, match="HTTP 500 Internal Server Error"):
        fetch(FILE, [good.url], tmp_path / "images")
    assert len(good.asked) == mirrors.TRIES


def test_the_next_mirror_is_tried(good: Mirror, tmp_path: Path, folder_mirror: Path) -> None:
    """If one mirror has wrong bytes, the next one is tried."""
    good.content[FILE.name] = b"wrong"
    assert fetch(FILE, [good.url, str(folder_mirror)], tmp_path / "images") == str(folder_mirror)


def test_each_mirror_is_named_with_its_reason(good: Mirror, tmp_path: Path) -> None:
    """If all mirrors fail, each one is named with its reason, and nothing remains."""
    good.faults = ["html"] * mirrors.TRIES
    wrong = hashlib.sha256(b"<html>Please log in</html>").hexdigest()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / FILE.name).write_bytes(b"broken")
    reasons = {
        good.url: ("checksum mismatch", DIGEST, wrong),
        f"{good.url}/elsewhere": ("HTTP 404 Not Found",),
        "http://127.0.0.1:9": ("ConnectionError: Connection refused",),
        str(tmp_path / "broken"): ("checksum mismatch", DIGEST),
        str(tmp_path / "nowhere"): ("No such file or directory",),
        "ftp://127.0.0.1": ("ftp:// is not supported",),
    }
    with pytest.raises(DownloadError) as error:
        fetch(FILE, list(reasons), tmp_path / "raw" / "images")
    message = str(error.value)
    begins = [message.index(f"{mirror}: ") for mirror in reasons]
    assert begins == sorted(begins)
    for parts, begin, end in zip(reasons.values(), begins, [*begins[1:], None], strict=True):
        assert all(part in message[begin:end] for part in parts)
    assert list((tmp_path / "raw").iterdir()) == []


def test_a_proxy_that_refuses_is_quoted(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a proxy answers is the reason, whether it forwards a request or opens a tunnel."""
    monkeypatch.setattr(mirrors, "TRIES", 1)
    for variable in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    for variable in ("http_proxy", "https_proxy"):
        monkeypatch.setenv(variable, mirror.url)
    mirror.faults = ["407", "407"]
    for scheme in ("http", "https"):
        with pytest.raises(DownloadError, match="407 Proxy Authentication Required"):
            fetch(
                RemoteFile(name="a", sha256="0" * 64), [f"{scheme}://mirror.test"], tmp_path / "a"
            )


def test_without_mirrors_the_error_says_so(tmp_path: Path) -> None:
    """If no mirror is listed, the error says so."""
    with pytest.raises(DownloadError, match="no mirror is listed"):
        fetch(FILE, [], tmp_path / "images")


@pytest.mark.parametrize("over_http", [True, False])
def test_a_full_disk_is_one_clear_error(
    good: Mirror, folder_mirror: Path, small_disk: Path, over_http: bool
) -> None:
    """A full disk is reported as an error of the disk, not of the mirror, and leaves nothing."""
    mirror = good.url if over_http else str(folder_mirror)
    with pytest.raises(OutputError, match=r"images: cannot be written \(No space left"):
        fetch(FILE, [mirror], small_disk / "images")
    assert list(small_disk.iterdir()) == []


def test_a_redirect_is_followed(good: Mirror, tmp_path: Path) -> None:
    """A mirror may redirect to another address: the pinned hash decides what is accepted."""
    good.content["moved.gz"] = good.content.pop(FILE.name)
    good.redirects = {FILE.name: f"{good.url}/moved.gz"}
    fetch(FILE, [good.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_a_compressed_file_is_not_decompressed(mirror: Mirror, tmp_path: Path) -> None:
    """A file that the mirror labels as gzip-encoded, as some do with .gz, keeps its bytes."""
    path = write_raw(tmp_path / "files", make_images(120), make_images(60))["train_images"]
    mirror.content[path.name] = path.read_bytes()
    mirror.headers = {"Content-Encoding": "x-gzip"}
    file = RemoteFile(name=path.name, sha256=sha256(path))
    fetch(file, [mirror.url], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == path.read_bytes()


def test_a_mirror_that_is_too_slow_is_given_up(
    good: Mirror, tmp_path: Path, folder_mirror: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A mirror that trickles, and so never times out, is given up for the next one."""
    monkeypatch.setattr(mirrors, "PATIENCE_S", 0.5)
    good.faults = ["trickle"]
    begin = time.monotonic()
    assert fetch(FILE, [good.url, str(folder_mirror)], tmp_path / "images") == str(folder_mirror)
    assert (tmp_path / "images").read_bytes() == CONTENT
    assert time.monotonic() - begin < 10


def test_a_small_file_after_a_slow_try_is_not_too_slow(
    mirror: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the try under way decides whether a mirror is too slow, not the failed ones before."""
    monkeypatch.setattr(mirrors, "PATIENCE_S", 0.3)
    monkeypatch.setattr(mirrors, "TIMEOUT_S", (1, 0.5))
    content = b"labels"
    file = RemoteFile(name="labels.gz", sha256=hashlib.sha256(content).hexdigest())
    mirror.content[file.name] = content
    mirror.faults = ["stall"]
    assert fetch(file, [mirror.url], tmp_path / "labels") == mirror.url


def test_mirrors_of_the_environment_are_tried_first(
    good: Mirror, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """<DATASET>_MIRRORS lists mirrors, separated by commas, that are tried before the others."""
    monkeypatch.setenv("MNIST_MIRRORS", " /a, file:///b ,")
    assert mirrors.mirrors_from_environment("mnist") == ["/a", "file:///b"]
    monkeypatch.setenv("MNIST_MIRRORS", good.url)
    fetch_all("mnist", source_of("/nowhere"), tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(paths.ROLES)


def test_mirrors_of_a_data_set_serve_those_named_after_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mirrors of `mnist` serve `mnist_record` after its own, and not `mnistlike` or `emnist`."""
    monkeypatch.setenv("MNIST_MIRRORS", "/a,/b")
    monkeypatch.setenv("MNIST_RECORD_MIRRORS", "/c")
    assert mirrors.mirrors_from_environment("mnist_record") == ["/c", "/a", "/b"]
    assert mirrors.mirrors_from_environment("mnist_record_2") == ["/c", "/a", "/b"]
    assert mirrors.mirrors_from_environment("mnist") == ["/a", "/b"]
    assert mirrors.mirrors_from_environment("mnistlike") == []
    assert mirrors.mirrors_from_environment("emnist") == []


def source_of(*listed: str, **files: Any) -> MirrorSource:
    """Return a source whose files are all `FILE`, but for those that are given."""
    return MirrorSource.model_validate(
        {
            "source": "mirrors",
            "mirrors": list(listed),
            "files": dict.fromkeys(paths.ROLES, FILE.model_dump()) | files,
        }
    )


def test_the_writers_are_a_fifth_file(good: Mirror, tmp_path: Path) -> None:
    """The file of the writers is brought where one is listed."""
    good.content["writers"] = b"who"
    writers = {"name": "writers", "sha256": hashlib.sha256(b"who").hexdigest()}
    fetch_all("mnist", source_of(good.url, train_writers=writers), tmp_path)
    assert (tmp_path / paths.WRITERS).read_bytes() == b"who"
    assert len(list(tmp_path.iterdir())) == 5


def test_a_file_without_a_hash_is_taken_and_its_hash_told(
    good: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without a pinned hash the first mirror's file is taken, and its hash is printed."""
    good.content["unpinned"] = b"anything"
    source = source_of(good.url, train_labels={"name": "unpinned", "sha256": None})
    fetch_all("mnist", source, tmp_path)
    assert (tmp_path / "train_labels").read_bytes() == b"anything"
    printed = capsys.readouterr().out.splitlines()
    told = f"; its SHA-256 is {hashlib.sha256(b'anything').hexdigest()}"
    assert [told in line for line in printed if "SHA-256" in line] == [True]
    assert f"mnist: train_labels: {good.url}{told}" in printed


@pytest.mark.parametrize("over_http", [True, False])
def test_a_file_without_a_hash_is_fetched_again(
    good: Mirror, folder_mirror: Path, tmp_path: Path, over_http: bool
) -> None:
    """A file of unknown content that is already there is replaced by what the mirror has now."""
    file = RemoteFile(name=FILE.name, sha256=None)
    (tmp_path / "images").write_bytes(b"from another time")
    fetch(file, [good.url if over_http else str(folder_mirror)], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_a_folder_may_name_its_files_otherwise(folder_mirror: Path, tmp_path: Path) -> None:
    """In a folder the pinned content is found under any name, if the listed one is not there."""
    (folder_mirror / "a").write_bytes(b"something else")
    (folder_mirror / FILE.name).rename(folder_mirror / "downloaded (1).bin")
    fetch(FILE, [str(folder_mirror)], tmp_path / "images")
    assert (tmp_path / "images").read_bytes() == CONTENT


def test_a_folder_without_the_content_is_given_up(folder_mirror: Path, tmp_path: Path) -> None:
    """If neither name nor content is in a folder, or no content is pinned, the error says so."""
    file = RemoteFile(name="other.gz", sha256="0" * 64)
    for each in (file, RemoteFile(name="other.gz", sha256=None)):
        with pytest.raises(DownloadError, match="No such file or directory"):
            fetch(each, [str(folder_mirror)], tmp_path / "images")


def zip_of(members: dict[str, bytes], method: int = zipfile.ZIP_DEFLATED) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", method) as archive:
        for name, member in members.items():
            archive.writestr(name, member)
    return content.getvalue()


MEMBERS = {f"emnist/{role}.gz": role.encode() * 1000 for role in paths.ROLES}


def packed_in(content: bytes, **members: str) -> dict[str, Any]:
    """Return the files of all roles, each a member of the archive with a `content`."""
    listed = {role: f"emnist/{role}.gz" for role in paths.ROLES} | members
    digest = hashlib.sha256(content).hexdigest()
    return {
        role: {"name": "all.zip", "sha256": digest, "member": member}
        for role, member in listed.items()
    }


@pytest.mark.parametrize(
    "method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA]
)
def test_members_are_taken_from_one_archive(mirror: Mirror, tmp_path: Path, method: int) -> None:
    """An archive is fetched once for all of its members, and does not stay."""
    mirror.content["all.zip"] = zip_of(MEMBERS, method)
    fetch_all(
        "emnist", source_of(mirror.url, **packed_in(mirror.content["all.zip"])), tmp_path / "raw"
    )
    assert {path.name: path.read_bytes() for path in (tmp_path / "raw").iterdir()} == {
        role: role.encode() * 1000 for role in paths.ROLES
    }
    assert mirror.asked == ["all.zip"]


def test_several_archives_are_told_apart(mirror: Mirror, tmp_path: Path) -> None:
    """Training and test files may lie in archives of their own, next to files in none."""
    mirror.content = {
        "train.zip": zip_of({"images": b"1", "labels": b"2"}),
        "test.zip": zip_of({"images": b"3"}),
        "labels": b"4",
    }
    digests = {name: hashlib.sha256(each).hexdigest() for name, each in mirror.content.items()}
    files: dict[str, dict[str, str | None]] = {
        "train_images": {"name": "train.zip", "member": "images"},
        "test_images": {"name": "test.zip", "member": "images"},
        "train_labels": {"name": "train.zip", "member": "labels"},
        "test_labels": {"name": "labels"},
    }
    for file in files.values():
        file["sha256"] = digests[str(file["name"])]
    fetch_all("some", source_of(mirror.url, **files), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {
        "train_images": b"1", "train_labels": b"2", "test_images": b"3", "test_labels": b"4",
    }  # fmt: skip
    assert sorted(mirror.asked) == ["labels", "test.zip", "train.zip"]


def test_a_member_that_is_missing_is_named(mirror: Mirror, tmp_path: Path) -> None:
    """A member that is not in the archive is named with the nearest one, and no archive stays."""
    mirror.content["all.zip"] = zip_of(MEMBERS)
    files = packed_in(mirror.content["all.zip"], test_labels="emnist/test_lables.gz")
    with pytest.raises(
        DownloadError,
        match=r"no member 'emnist/test_lables\.gz'; did you mean 'emnist/test_labels\.gz'",
    ):
        fetch_all("emnist", source_of(mirror.url, **files), tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == set(paths.ROLES) - {"test_labels"}


def corrupted(content: bytes) -> bytes:
    """Return an archive with other bytes in the first half of its body."""
    middle = len(content) // 4
    return content[:middle] + bytes(40) + content[middle + 40 :]


NOISE = {name: hashlib.shake_256(name.encode()).digest(3000) for name in MEMBERS}


@pytest.mark.parametrize(
    "content",
    [
        b"<html>not a zip</html>",
        b"",
        zip_of(MEMBERS)[:200],
        corrupted(zip_of(NOISE, zipfile.ZIP_STORED)),
        corrupted(zip_of(NOISE)),
        corrupted(zip_of(NOISE, zipfile.ZIP_LZMA)),
        zip_of(NOISE)[1:],
    ],
    ids=["html", "empty", "truncated", "stored", "deflated", "lzma", "shifted"],
)
def test_a_damaged_archive_is_one_clear_error(
    mirror: Mirror, tmp_path: Path, content: bytes
) -> None:
    """An archive that cannot be read is an error with its remedy, and nothing of it stays."""
    mirror.content["all.zip"] = content
    with pytest.raises(
        DownloadError, match="archive cannot be read as a zip file .*; correct its name or hash"
    ):
        fetch_all("emnist", source_of(mirror.url, **packed_in(content)), tmp_path)
    assert not list(tmp_path.glob("archive_*"))
    assert not list(tmp_path.glob("*.part"))


def test_the_hash_of_an_archive_is_told(
    mirror: Mirror, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The hash that is printed for an archive without one is what would pin it."""
    content = mirror.content["all.zip"] = zip_of(MEMBERS)
    files = {role: each | {"sha256": None} for role, each in packed_in(content).items()}
    fetch_all("emnist", source_of(mirror.url, **files), tmp_path)
    assert f"its SHA-256 is {hashlib.sha256(content).hexdigest()}" in capsys.readouterr().out


def test_the_error_tells_the_remedy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If no mirror has a file, the error names data set, file and the variable that helps."""
    monkeypatch.delenv("MNIST_MIRRORS", raising=False)
    with pytest.raises(
        DownloadError, match=r"^mnist: no mirror supplied images\.gz: /nowhere: .*; set MNIST_MIRR"
    ):
        fetch_all("mnist", source_of("/nowhere"), tmp_path)


@pytest.mark.parametrize(
    "file",
    [
        {"name": "../images", "sha256": "0" * 64},
        {"name": "a/b", "sha256": "0" * 64},
        {"name": "images", "sha256": "0" * 63},
        {"name": "images", "sha256": "G" * 64},
    ],
)
def test_names_stay_in_their_folder_and_hashes_are_whole(file: dict[str, str]) -> None:
    """A file's name may not leave the mirror's folder, and its hash must be a whole SHA-256."""
    with pytest.raises(ValidationError):
        RemoteFile.model_validate(file)
