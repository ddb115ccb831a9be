import hashlib
import os
from pathlib import Path

import pytest

from pipeline.core.errors import OutputError
from pipeline.core.files import (
    require_writable,
    sha256,
    try_lock,
    whole_file,
    write_json,
    write_text,
)
from tests.helpers import no_parts


def test_a_file_gets_its_name_only_when_complete(tmp_path: Path) -> None:
    """A file appears under its name only once it is complete."""
    path = tmp_path / "folder" / "file.txt"
    with whole_file(path, "w") as file:
        file.write("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_an_error_keeps_the_old_file_and_leaves_no_part(tmp_path: Path) -> None:
    """An error while writing keeps the old file and leaves nothing of the new one."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path, "w") as file:
        file.write("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert no_parts(tmp_path)


def test_json_ends_with_a_newline_and_keeps_its_order(tmp_path: Path) -> None:
    """JSON is indented, keeps the order of its keys, and ends with a newline."""
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'


def test_a_hash_is_that_of_the_content(tmp_path: Path) -> None:
    """The hash of a file is the SHA-256 of its bytes."""
    content = bytes(range(256)) * 5000
    (tmp_path / "file").write_bytes(content)
    assert sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(small_disk: Path) -> None:
    """A full disk raises one clear error that names the file, and leaves nothing half-written."""
    with (
        pytest.raises(OutputError, match=r"big\.bin: cannot be written \(No space left"),
        whole_file(small_disk / "big.bin") as file,
    ):
        file.write(b"x" * 200_000)
    assert list(small_disk.iterdir()) == []


def test_an_unwritable_place_is_rejected_before_the_work(tmp_path: Path) -> None:
    """A path that cannot be written is rejected before the work starts."""
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="model: cannot be written"):
        require_writable(tmp_path / "models" / "model")


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    """Checking whether a path can be written leaves no file behind."""
    require_writable(tmp_path / "new" / "model")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_has_one_holder_until_it_is_closed(tmp_path: Path) -> None:
    """A locked file cannot be locked again until its descriptor is closed."""
    first = try_lock(tmp_path / "folder/lock")
    assert first is not None
    assert try_lock(tmp_path / "folder/lock") is None
    os.close(first)
    again = try_lock(tmp_path / "folder/lock")
    assert again is not None
    os.close(again)
