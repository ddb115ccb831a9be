import os
from pathlib import Path

import pytest

from pipeline.errors import OutputError
from pipeline.files import require_writable, try_lock, whole_file, write_json, write_text
from tests.conftest import no_parts


def test_a_file_has_its_name_only_when_it_is_whole(tmp_path: Path) -> None:
    """A file has its name only when it is whole."""
    path = tmp_path / "folder" / "file.txt"
    with whole_file(path, "w") as file:
        file.write("whole")
        assert not path.exists()
    assert path.read_text() == "whole"


def test_an_error_leaves_the_old_file_and_no_part(tmp_path: Path) -> None:
    """An error while writing leaves the old file and no part of the new one."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with pytest.raises(ZeroDivisionError), whole_file(path, "w") as file:
        file.write("half")
        _ = 1 / 0
    assert path.read_text() == "old"
    assert no_parts(tmp_path)


def test_json_ends_with_a_newline_and_keeps_its_order(tmp_path: Path) -> None:
    """JSON is indented, keeps its order and ends with a newline."""
    write_json(tmp_path / "a.json", {"b": 1, "a": [2]})
    assert (tmp_path / "a.json").read_text() == '{\n  "b": 1,\n  "a": [\n    2\n  ]\n}\n'


def test_a_full_disk_is_one_clear_error_and_leaves_nothing(small_disk: Path) -> None:
    """A full disk is one clear error that names the file, and nothing half-written stays."""
    with (
        pytest.raises(OutputError, match=r"big\.bin: cannot be written \(No space left"),
        whole_file(small_disk / "big.bin") as file,
    ):
        file.write(b"x" * 200_000)
    assert list(small_disk.iterdir()) == []


def test_an_unwritable_place_is_refused_before_the_work(tmp_path: Path) -> None:
    """A place that cannot be written is refused before the work begins."""
    (tmp_path / "models").write_text("a file where a folder should be")
    with pytest.raises(OutputError, match="model: cannot be written"):
        require_writable(tmp_path / "models" / "model")


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    """Asking whether a place can be written leaves no file."""
    require_writable(tmp_path / "new" / "model")
    assert list((tmp_path / "new").iterdir()) == []


def test_a_lock_is_held_by_one_and_ends_with_it(tmp_path: Path) -> None:
    """A file that is locked cannot be locked again until its descriptor is closed."""
    first = try_lock(tmp_path / "folder/lock")
    assert first is not None
    assert try_lock(tmp_path / "folder/lock") is None
    os.close(first)
    again = try_lock(tmp_path / "folder/lock")
    assert again is not None
    os.close(again)
