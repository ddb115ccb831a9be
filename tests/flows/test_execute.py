import threading
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from flows.errors import StageFailed, StageStopped, StageTimedOut
from flows.execute import Outcome, run_stage
from tests.flows.conftest import CLEAN, Stages, dvc_status, fan_out, run, stage
from tests.flows.services import command_of

MakeRepository = Callable[[Stages], Path]


def processes_in(root: Path) -> list[psutil.Process]:
    """Return the processes whose current folder is `root`."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return found


def gone_within(root: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_in(root):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def test_a_stage_runs_and_is_then_cached(make_repository: MakeRepository) -> None:
    """A stage runs once; unchanged it is Cached; what the run-cache has is Restored."""
    root = make_repository(fan_out(1))
    lines: list[str] = []
    assert run_stage(root, "source", on_line=lines.append) is Outcome.RAN
    assert "Running stage 'source':" in lines
    assert run_stage(root, "source") is Outcome.CACHED
    (root / "dvc.lock").unlink()
    assert run_stage(root, "source") is Outcome.RESTORED
    assert run_stage(root, "source", force=True) is Outcome.RAN


def test_a_failed_command_says_why(make_repository: MakeRepository) -> None:
    """A failed stage is told by name, with the command's exit status."""
    root = make_repository({"bad": stage("echo error: no good && exit 3", out="x")})
    with pytest.raises(StageFailed, match="bad: no good"):
        run_stage(root, "bad")


def test_the_command_sees_its_environment(make_repository: MakeRepository) -> None:
    """Variables that are given reach the command; `python` is this one."""
    root = make_repository(
        {"env": stage("echo $CUDA_VISIBLE_DEVICES && which python > x", out="x")}
    )
    lines: list[str] = []
    run_stage(root, "env", variables={"CUDA_VISIBLE_DEVICES": "7"}, on_line=lines.append)
    assert "7" in lines


def test_a_time_limit_ends_the_whole_stage(make_repository: MakeRepository) -> None:
    """A stage that takes too long is ended with all its processes."""
    root = make_repository({"slow": stage("sleep 60 & sleep 60; echo > x", out="x")})
    with pytest.raises(StageTimedOut, match="longer than 3 s"):
        run_stage(root, "slow", timeout_s=3)
    assert gone_within(root, 1)


def test_stopping_ends_the_whole_stage(make_repository: MakeRepository) -> None:
    """A stage that ignores SIGTERM is killed when the flow is told to stop."""
    root = make_repository({"deaf": stage("trap '' TERM; sleep 60 & wait; sleep 60", out="x")})
    stop = threading.Event()
    threading.Timer(3, stop.set).start()
    with pytest.raises(StageStopped):
        run_stage(root, "deaf", stop=stop)
    assert gone_within(root, 1)


def test_a_killed_stage_is_told_and_leaves_nothing(make_repository: MakeRepository) -> None:
    """When the stage's supervisor or DVC is killed, the stage fails and nothing is left."""
    root = make_repository({"slow": stage("sleep 60; echo > x", out="x")})
    for name in ("supervise.py", "dvc"):
        began = threading.Event()

        def kill(name: str = name, began: threading.Event = began) -> None:
            began.wait(30)
            victims = [
                process
                for process in processes_in(root)
                if any(part.endswith(name) for part in command_of(process)[:4])
            ]
            victims[0].kill()

        def note(line: str, began: threading.Event = began) -> None:
            if line.startswith("> "):
                began.set()

        thread = threading.Thread(target=kill)
        thread.start()
        with pytest.raises(StageFailed, match="slow: (was killed by SIGKILL|exit status)"):
            run_stage(root, "slow", on_line=note)
        thread.join()
        assert gone_within(root, 1)
    assert run("dvc", "status", cwd=root).returncode == 0


@pytest.mark.slow
def test_stages_run_side_by_side_without_lock_errors(make_repository: MakeRepository) -> None:
    """Sixteen siblings at once all succeed, and the lock file has them all."""
    root = make_repository(fan_out(16))
    run_stage(root, "source")
    failures = []

    def one(name: str) -> None:
        try:
            run_stage(root, name, on_line=lambda line: None)
        except StageFailed as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(f"leaf{i}",)) for i in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    run_stage(root, "join")
    assert dvc_status(root) == CLEAN
