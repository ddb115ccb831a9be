import errno
import struct
from pathlib import Path
from typing import Any

import pytest

from pipeline import download
from pipeline.core import paths
from pipeline.core.errors import OutputError
from pipeline.core.files import sha256
from pipeline.core.params import Params
from pipeline.datasets import idx
from tests.helpers import assert_one_clear_line, edit_params, run_stage


def test_the_stage_brings_every_file(project: Path) -> None:
    """The stage leaves one file for each role, with the pinned bytes."""
    download.main("tiny")
    files = Params().content["datasets"]["tiny"]["download"]["files"]
    assert {path.name for path in paths.raw("tiny").iterdir()} == set(paths.ROLES)
    for role in paths.ROLES:
        assert sha256(paths.raw("tiny") / role) == files[role]["sha256"]


def test_digits_need_no_network(project: Path) -> None:
    """The digits are made without a network, as plain IDX files."""
    download.main("digits")
    assert idx.read(paths.raw("digits") / "test_labels", (1,)).shape == (360,)
    with open(paths.raw("digits") / "train_images", "rb") as file:
        assert struct.unpack(">4I", file.read(16)) == (0x803, 1437, 28, 28)


def test_the_writers_are_brought_and_stay(project: Path, tmp_path: Path) -> None:
    """Where a data set has a file of the writers, it is brought as well, and is no stray."""
    (tmp_path / "mirror/who").write_bytes(b"who")

    def change(params: Any) -> None:
        who = {"name": "who", "sha256": sha256(tmp_path / "mirror/who")}
        params["datasets"]["tiny"]["download"]["files"]["train_writers"] = who

    edit_params(project / "params.yaml", change)
    for _ in range(2):
        download.main("tiny")
        assert {path.name for path in paths.raw("tiny").iterdir()} == {*paths.ROLES, paths.WRITERS}


def test_strays_of_an_interrupted_download_are_removed(project: Path) -> None:
    """Files that are no raw file of the data set are removed, and those that are stay."""
    download.main("tiny")
    kept = paths.raw("tiny") / "train_labels"
    written = kept.stat().st_mtime_ns
    for name in ("tmp1a2b3c", "train_images.part", "archive_0"):
        (paths.raw("tiny") / name).write_bytes(b"half of a file")
    download.main("tiny")
    assert {path.name for path in paths.raw("tiny").iterdir()} == set(paths.ROLES)
    assert kept.stat().st_mtime_ns == written


def test_a_stray_that_cannot_be_removed_is_one_clear_error(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If a stray file cannot be removed, the error names it."""
    download.main("tiny")
    (paths.raw("tiny") / "tmp1a2b3c").touch()

    def refuse(*_: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OutputError, match=r"tmp1a2b3c: cannot be written \(Read-only file system"):
        download.main("tiny")


def test_without_a_mirror_one_clear_line_names_the_remedy(project: Path) -> None:
    """If no mirror has a file, one line names the file, the mirrors and the remedy."""

    def change(params: Any) -> None:
        params["datasets"]["tiny"]["download"]["mirrors"] = ["/nowhere", "ftp://127.0.0.1/"]

    edit_params(project / "params.yaml", change)
    assert_one_clear_line(
        run_stage("download", "tiny", cwd=project),
        "tiny: no mirror supplied train_images",
        "/nowhere: No such file or directory",
        "ftp://127.0.0.1/: ftp:// is not supported",
        "set TINY_MIRRORS to a folder or URL",
    )
    assert list(paths.raw("tiny").iterdir()) == []
