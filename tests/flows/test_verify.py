import hashlib
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

import pytest

from dvc_flow.engine import Outcome
from dvc_flow.repository import Repository
from dvc_flow.verify import remove_all_damaged, remove_half_written_lock
from tests.flows.conftest import CLEAN, Stages, dvc_status, engine, fan_out, run

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own


def damage(root: Path, content: str) -> Path:
    """Damage the cached object that has a content, and leave it read-only, as DVC does."""
    objects = (root / ".dvc/cache/files/md5").rglob("*")
    path = next(each for each in objects if each.is_file() and each.read_text() == content)
    path.chmod(0o644)
    path.write_text("damaged")
    path.chmod(0o444)
    return path


def remove_damaged(root: Path) -> list[str]:
    with chdir(root):
        return remove_all_damaged(Repository())


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


def test_a_run_checks_what_it_restores(make_repository: Callable[[Stages], Path]) -> None:
    """A damaged object of an output that is missing is removed, and the stage runs."""
    root = make_repository(fan_out(2))
    assert run("dvc", "repro", cwd=root).returncode == 0
    path = damage(root, "input\ninput\n")
    with engine(root) as (reproducer, nodes):
        assert reproducer.run(nodes["join"]) is Outcome.CACHED
    assert path.read_text() == "damaged"  # its file is here, so nobody needs it
    (root / "join.txt").unlink()
    with engine(root) as (reproducer, nodes):
        assert reproducer.run(nodes["join"]) is Outcome.RAN
    assert path.read_text() == (root / "join.txt").read_text() == "input\ninput\n"


def test_an_empty_folder_of_the_run_cache_is_no_obstacle(
    make_repository: Callable[[Stages], Path],
) -> None:
    """DVC, killed before it wrote an entry, fails on its folder ever after; the flow does not."""
    root = make_repository(fan_out(1))
    assert run("dvc", "repro", "source", cwd=root).returncode == 0
    for entry in list((root / ".dvc/cache/runs").rglob("*")):
        if entry.is_file():
            entry.unlink()
    (root / "dvc.lock").unlink()
    assert "NoneType" in run("dvc", "repro", "source", cwd=root).stderr
    with engine(root) as (reproducer, nodes):
        assert reproducer.run(nodes["source"]) is Outcome.RAN


def test_an_object_of_dvc_2_is_not_judged(make_repository: Callable[[Stages], Path]) -> None:
    """It is named by a hash of its text with other line ends, and stays."""
    root = make_repository(fan_out(1))
    text = b"one\r\ntwo\r\n"
    md5 = hashlib.md5(text.replace(b"\r\n", b"\n"), usedforsecurity=False).hexdigest()
    path = root / ".dvc/cache" / md5[:2] / md5[2:]
    path.parent.mkdir(parents=True)
    path.write_bytes(text)
    (root / "old.txt.dvc").write_text(f"outs:\n- md5: {md5}\n  path: old.txt\n")
    assert remove_damaged(root) == []
    assert path.read_bytes() == text


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
