"""Whatever kills a stage at any moment, another run leaves the same bytes.

The variable KILLS is how often each is tried; `make soak` sets 25.
"""

import os
import random
import re
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dvc_flow.verify import remove_half_written_lock
from pipeline.core import paths
from tests.faults.conftest import (
    DATASET,
    RESULTS,
    STAGES,
    VARIANT,
    results,
    run_once,
    start,
)
from tests.helpers import edit_params, environment, no_parts, run

pytestmark = [pytest.mark.faults, pytest.mark.slow]

KILLS = int(os.environ.get("KILLS", "1"))
LONGEST_S = {"train": 12, "evaluate": 10, "profile": 10}  # they load TensorFlow first
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


def moment(longest: float) -> float:
    """Return a random time, in seconds."""
    return random.uniform(0, longest)  # noqa: S311


def remove(root: Path, stage: str) -> None:
    """Remove a stage's results, as DVC does before it runs the stage."""
    for name in RESULTS[stage]:
        path = root / name
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("number", SIGNALS, ids=lambda each: each.name)
def test_a_stage_that_is_killed_leaves_the_same_bytes_when_run_again(
    repository: Path, stage: str, number: signal.Signals
) -> None:
    """After SIGTERM or SIGKILL at a random moment, another run of the stage leaves the same bytes."""
    expected = results(repository, stage)
    for _ in range(KILLS):
        remove(repository, stage)
        process = start(stage, repository)
        time.sleep(moment(LONGEST_S.get(stage, 2)))
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
        assert process.returncode in (0, -number, 128 + number), err  # it may have been done
        if process.returncode == 128 + number:
            assert "error: terminated" in err.splitlines()
            assert no_parts(repository)
        assert "Traceback" not in err
        done = run_once(stage, repository)
        assert done.returncode == 0, done.stderr
        assert results(repository, stage) == expected
        assert no_parts(repository)


@pytest.mark.parametrize("_", range(KILLS))
def test_a_reproduction_that_is_killed_goes_on(repository: Path, _: int) -> None:
    """After SIGKILL of `dvc repro` and all its stages, another `dvc repro` leaves the same bytes."""
    expected = results(repository, "download", "preprocess", "train", "evaluate")
    shutil.rmtree(repository / ".dvc/cache")  # from which DVC would restore what was not finished
    edit_params(
        repository / paths.PARAMS,
        lambda params: params["runtime"].update(checkpoint_every={"steps": 7}),
    )
    process = subprocess.Popen(
        ["dvc", "repro", "--force"], cwd=repository, env=environment(PYTHONPATH=str(repository)),
        start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    time.sleep(2 + moment(60))
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    remove_half_written_lock(repository)  # `make verify`, if DVC was at that
    run("dvc", "repro", cwd=repository)
    assert run("dvc", "status", cwd=repository).startswith("Data and pipelines are up to date")
    assert results(repository, "download", "preprocess", "train", "evaluate") == expected
    assert not [path for path in repository.glob("checkpoints/*/*/*") if path.name != "lock"]


@pytest.mark.parametrize("_", range(KILLS))
def test_a_training_that_is_killed_again_and_again_arrives(repository: Path, _: int) -> None:
    """A training that is killed every few steps resumes each time, and ends in the same bytes."""
    expected = results(repository, "train")
    edit_params(
        repository / paths.PARAMS,
        lambda params: params["runtime"].update(checkpoint_every={"steps": 2}),
    )
    remove(repository, "train")
    folder = repository / paths.checkpoints(DATASET, VARIANT)
    reached = 0
    for _round in range(4):
        process = start("train", repository)
        wanted = reached + 2 + random.randrange(20)  # noqa: S311
        while reached < min(wanted, 90) and process.poll() is None:
            names = [path.name for path in folder.rglob("step_*.safetensors")]
            reached = max([reached, *(int(name[5:14]) for name in names)])
            time.sleep(0.001)
        process.kill()
        process.communicate()
    done = run_once("train", repository)
    assert done.returncode == 0, done.stderr
    resuming = re.search(r"resuming after step (\d+) of 99", done.stdout)
    assert resuming is not None
    assert int(resuming[1]) >= reached - 2 > 0  # the newest may have been half written
    assert results(repository, "train") == expected
