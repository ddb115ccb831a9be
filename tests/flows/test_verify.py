from collections.abc import Callable
from pathlib import Path

import pytest

from flows.verify import remove_damaged, remove_half_written_lock
from tests.flows.conftest import CLEAN, Stages, dvc_status, fan_out, run


def damage(root: Path, content: str) -> Path:
    """Damage the cached object that has a content, and leave it read-only, as DVC does."""
    objects = (root / ".dvc/cache/files/md5").rglob("*")
    path = next(each for each in objects if each.is_file() and each.read_text() == content)
    path.chmod(0o644)
    path.write_text("damaged")
    path.chmod(0o444)
    return path


def test_a_damaged_object_is_removed_and_named(make_repository: Callable[[Stages], Path]) -> None:
    """DVC would restore it; removed, the stage runs again."""
    root = make_repository(fan_out(2))
    assert run("dvc", "repro", cwd=root).returncode == 0
    assert remove_damaged(root) == []
    path = damage(root, "input\ninput\n")  # the join of both leaves
    (root / "join.txt").unlink()
    assert remove_damaged(root) == ["join.txt"]
    assert not path.exists()
    assert run("dvc", "repro", cwd=root).returncode == 0
    assert (root / "join.txt").read_text() == "input\ninput\n"
    assert dvc_status(root) == CLEAN


def test_what_is_in_the_workspace_need_not_be_looked_at(
    make_repository: Callable[[Stages], Path],
) -> None:
    """A flow looks only at what it would restore."""
    root = make_repository(fan_out(2))
    assert run("dvc", "repro", cwd=root).returncode == 0
    damage(root, "input\ninput\n")
    assert remove_damaged(root, only_missing=True) == []
    (root / "join.txt").unlink()
    assert remove_damaged(root, only_missing=True) == ["join.txt"]


@pytest.mark.parametrize("content", ["", '{"write": {'])
def test_a_half_written_list_of_running_commands_is_removed(
    make_repository: Callable[[Stages], Path], content: str
) -> None:
    """DVC, killed while it wrote it, would refuse every command ever after."""
    root = make_repository(fan_out(2))
    assert not remove_half_written_lock(root)  # there is none yet
    assert run("dvc", "repro", cwd=root).returncode == 0
    assert not remove_half_written_lock(root)
    lock = root / ".dvc/tmp/rwlock"
    lock.write_text(content)
    assert "JSON structure is corrupted" in run("dvc", "repro", cwd=root).stderr
    assert remove_half_written_lock(root)
    assert run("dvc", "repro", cwd=root).returncode == 0
