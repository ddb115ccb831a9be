"""Full or read-only disks, and too little memory, give one clear line and then the same bytes."""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.conftest import (
    FOLDER,
    RESULTS,
    STAGES,
    command,
    mounted,
    own_code,
    results,
    run_once,
)
from tests.helpers import assert_one_clear_line

pytestmark = [pytest.mark.faults, pytest.mark.slow]

FOLDERS = {stage: names[0] for stage, names in RESULTS.items() if names} | {"profile": FOLDER}
GROUPS = Path("/sys/fs/cgroup/memory")


def output_folder(root: Path, stage: str) -> Path:
    path = root / FOLDERS[stage]
    return path.parent if path.suffix else path


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("fault", ["full", "read-only"])
def test_a_stage_that_cannot_write_says_so(repository: Path, stage: str, fault: str) -> None:
    """One line names the file, nothing is half-written, and with room there are the same bytes."""
    expected = results(repository, stage)
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
    """A group of processes limited to 150 MB, which TensorFlow alone exceeds."""
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
    """Killed for memory, a training leaves nothing half-written, and succeeds with more memory."""
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
