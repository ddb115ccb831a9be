"""Disks that are full or read-only, and too little memory: a clear line, then the same bytes."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import assert_one_clear_line
from tests.faults.conftest import (
    RESULTS,
    STAGES,
    command,
    mounted,
    own_code,
    results,
    run_once,
    undisturbed,
)

pytestmark = [pytest.mark.faults, pytest.mark.slow]

FOLDERS = {stage: names[0] for stage, names in RESULTS.items() if names} | {
    "footprint": "footprint/tiny/tiny_conv.csv"
}
GROUPS = Path("/sys/fs/cgroup/memory")


def output_folder(root: Path, stage: str) -> Path:
    path = root / FOLDERS[stage]
    return path.parent if path.suffix else path


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_stage_that_cannot_write_says_so(repository: Path, stage: str, fault: str) -> None:
    """One line that names the file; nothing half-written; and once there is room, the same bytes."""
    expected = undisturbed(repository, stage)
    folder = output_folder(repository, stage)
    with mounted(folder, "ro" if fault == "read-only" else "size=4k"):
        if fault == "full":
            (folder / "filler").write_bytes(b"x" * 4096)
        done = run_once(stage, repository)
        assert_one_clear_line(done, f"{FOLDERS[stage].split('.')[0]}", "cannot be written")
        assert {path.name for path in folder.rglob("*") if path.is_file()} <= {"filler"}
    done = run_once(stage, repository)
    assert done.returncode == 0, done.stderr
    assert results(repository, stage) == expected


@pytest.fixture
def small_memory() -> Iterator[Path]:
    """A group of processes that may take 150 MB, which TensorFlow alone exceeds."""
    group = GROUPS / f"alexnet-mnist-{os.getpid()}"
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(150_000_000))
    except OSError:
        pytest.skip("a memory limit needs root and control groups")
    yield group
    group.rmdir()


def test_a_training_that_the_kernel_kills_for_memory_runs_again(
    repository: Path, small_memory: Path
) -> None:
    """Killed for memory, a training leaves nothing half-written, and runs again with more."""
    expected = results(repository, "train")
    shutil.rmtree(repository / "models/tiny/tiny_conv")
    shell = f"echo $$ > {small_memory}/cgroup.procs && exec {' '.join(command('train'))}"
    done = subprocess.run(
        ["sh", "-c", shell], cwd=repository, env=own_code(repository), capture_output=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == -signal.SIGKILL
    assert not (repository / "models/tiny/tiny_conv").exists()
    assert run_once("train", repository).returncode == 0
    assert results(repository, "train") == expected
