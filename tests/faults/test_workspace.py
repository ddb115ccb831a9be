"""What people and programs do to a workspace: edits during runs, damage, two runs, clocks."""

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.core import paths
from tests.faults.conftest import DATASET, VARIANT, results, run_once, start
from tests.helpers import assert_one_clear_line, edit_params, environment, run

pytestmark = [pytest.mark.faults, pytest.mark.slow]

CLEAN = "Data and pipelines are up to date"
TEN_YEARS_S = 10 * 365 * 86400


def flow(root: Path, *arguments: str, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["dvc-flow", *arguments], cwd=root, env=environment(**more),
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip


def with_seed(seed: int) -> Callable[[Any], None]:
    return lambda params: params["variants"][VARIANT].update(seeds=[seed])


def wait_for_checkpoint(root: Path, process: "subprocess.Popen[Any]") -> None:
    folder = root / paths.checkpoints(DATASET, VARIANT)
    deadline = time.monotonic() + 120
    while not list(folder.rglob("step_*.safetensors")):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("what", ["params", "code"])
def test_an_edit_while_a_run_is_going_is_never_recorded_beside_the_wrong_result(
    repository: Path, what: str
) -> None:
    """The stage fails and dvc.lock is unchanged; with the edit undone, the run resumes."""
    edit_params(repository / paths.PARAMS, with_seed(3))
    edit_params(
        repository / paths.PARAMS,
        lambda params: params["runtime"].update(checkpoint_every={"steps": 5}),
    )
    path = repository / ("params.yaml" if what == "params" else "pipeline/training/learner.py")
    before = path.read_bytes()
    lock = (repository / "dvc.lock").read_bytes()
    stage = f"train@{DATASET}-{VARIANT}"
    process = subprocess.Popen(
        ["dvc", "repro", stage], cwd=repository, env=environment(PYTHONPATH=str(repository)),
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip
    wait_for_checkpoint(repository, process)
    if what == "params":
        edit_params(path, with_seed(4))
    else:
        path.write_bytes(before + b"# edited\n")
    out, _ = process.communicate(timeout=120)
    assert process.returncode != 0
    assert (
        "changed while the stage was running, so its results do not match the current inputs" in out
    )
    assert (repository / "dvc.lock").read_bytes() == lock
    path.write_bytes(before)
    out = run("dvc", "repro", stage, cwd=repository)
    assert "resuming after step 99 of 99" in out
    assert (repository / paths.model(DATASET, VARIANT, 3)).exists()


def cached(root: Path, name: str) -> Path:
    """Return the object of a file in DVC's cache."""
    content = (root / name).read_bytes()
    return next(
        path
        for path in (root / ".dvc/cache/files/md5").rglob("*")
        if path.is_file() and path.read_bytes() == content
    )


def damage(path: Path) -> None:
    path.chmod(0o644)
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x10
    path.write_bytes(content)
    path.chmod(0o444)


@pytest.mark.parametrize("how", ["verify", "flow"])
def test_a_damaged_object_in_the_cache_is_noticed(repository: Path, how: str) -> None:
    """A damaged object is named and removed, and its stage runs again to the same bytes."""
    expected = results(repository, "train", "evaluate")
    name = str(paths.model(DATASET, VARIANT, 0))
    damage(cached(repository, name))
    shutil.rmtree(repository / "models")
    if how == "verify":
        done = subprocess.run(
            ["dvc-flow", "verify"], cwd=repository, env=environment(),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert done.stderr.splitlines() == [
            f"error: models/tiny/{VARIANT}: its copy in DVC's cache was damaged, and is removed"
        ]
        run("dvc", "repro", cwd=repository)
        assert run("dvc-flow", "verify", cwd=repository).startswith("every cached")
    else:
        done = flow(repository, "--jobs", "1")
        assert done.returncode == 0, done.stderr
        assert f"models/tiny/{VARIANT}: its copy in the cache was damaged" in done.stdout
    assert run("dvc", "status", cwd=repository).startswith(CLEAN)
    assert results(repository, "train", "evaluate") == expected


def test_a_damaged_lock_file_is_one_clear_line(repository: Path) -> None:
    """The flow names a damaged dvc.lock; with the committed one, it has nothing to do."""
    expected = results(repository)
    for content in ("stages: [", "schema: '2.0'\nstages:\n  train: 5\n", "\x00"):
        (repository / "dvc.lock").write_text(content)
        assert_one_clear_line(flow(repository), "dvc.lock")
    run("git", "checkout", "-q", "dvc.lock", cwd=repository)
    assert flow(repository).returncode == 0
    assert run("dvc", "status", cwd=repository).startswith(CLEAN)
    assert results(repository) == expected


def test_a_damaged_database_of_prefect_is_one_clear_line(repository: Path, tmp_path: Path) -> None:
    """If Prefect's database is damaged, one line says so; without it, the flow runs."""
    expected = results(repository)
    home = tmp_path / "prefect"
    home.mkdir()
    (home / "prefect.db").write_bytes(b"this is no database" * 1000)
    there = {"PREFECT_HOME": str(home)}
    assert_one_clear_line(flow(repository, "--force", "report@tiny", **there))
    (home / "prefect.db").unlink()
    assert flow(repository, PREFECT_HOME=str(home)).returncode == 0
    assert results(repository) == expected


def test_two_reproductions_at_once_in_one_workspace(repository: Path) -> None:
    """One waits for the other's lock or says that it is held, and the results are the same."""
    expected = results(repository, "train", "evaluate")
    shutil.rmtree(repository / ".dvc/cache/runs")
    both = [
        subprocess.Popen(
            ["dvc", "repro", "--force"], cwd=repository, text=True, stdout=subprocess.PIPE,
            env=environment(PYTHONPATH=str(repository)), stderr=subprocess.STDOUT,
        )
        for _ in range(2)
    ]  # fmt: skip
    outputs = [process.communicate(timeout=300)[0] for process in both]
    for process, out in zip(both, outputs, strict=True):
        assert process.returncode == 0 or "lock" in out or "is busy" in out, out
    run("dvc", "repro", cwd=repository)
    assert run("dvc", "status", cwd=repository).startswith(CLEAN)
    assert results(repository, "train", "evaluate") == expected


def test_two_trainings_of_the_same_at_once(repository: Path) -> None:
    """The second training is rejected in one line, and the first one ends as if alone."""
    expected = results(repository, "train")
    edit_params(
        repository / paths.PARAMS,
        lambda params: params["runtime"].update(checkpoint_every={"steps": 1}),
    )
    first = start("train", repository)
    wait_for_checkpoint(repository, first)
    first.send_signal(signal.SIGSTOP)  # so that it is still there when the second one comes
    second = run_once("train", repository)
    first.send_signal(signal.SIGCONT)
    assert second.returncode == 1
    assert "another process is training this; wait for it, or stop it" in second.stderr
    _, err = first.communicate(timeout=120)
    assert first.returncode == 0, err
    assert results(repository, "train") == expected


@pytest.mark.parametrize("jump", [TEN_YEARS_S, -TEN_YEARS_S])
def test_a_clock_that_jumps_changes_nothing(repository: Path, jump: int) -> None:
    """Times in the far future or past change nothing: only bytes count, and nothing runs again."""
    expected = results(repository)
    then = time.time() + jump
    for path in repository.rglob("*"):
        if path.is_file() and ".git/" not in str(path):
            os.utime(path, (then, then))
    assert "Running stage" not in run("dvc", "repro", cwd=repository)
    assert run("dvc", "status", cwd=repository).startswith(CLEAN)
    assert run_once("train", repository).returncode == 0
    assert results(repository) == expected
