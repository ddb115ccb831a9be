import os
import shutil
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from dvc_flow.engine import Outcome
from dvc_flow.errors import StageFailed, StageStopped, StageTimedOut
from dvc_flow.slots import Resources
from dvc_flow.stop import Stop
from tests.flows.conftest import CLEAN, Stages, dvc_status, engine, fan_out, run, stage
from tests.flows.services import command_of

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own

MakeRepository = Callable[[Stages], Path]


def processes_in(root: Path) -> list[psutil.Process]:
    """Return the processes whose current folder is `root`, but for this one and its own."""
    found = []
    for process in psutil.process_iter():
        try:
            if process.cwd() == str(root) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except psutil.Error:
            continue
    return [
        each
        for each in found
        if each.pid != os.getpid() and "warden.py" not in str(command_of(each))
    ]


def gone_within(root: Path, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while processes_in(root):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True


def run_stage(root: Path, name: str, *, force: bool = False, **how: Any) -> Outcome:
    of_engine = {key: how.pop(key) for key in ("stop", "environment", "resources") if key in how}
    with engine(root, **of_engine) as (reproducer, nodes):
        outcome = reproducer.run(nodes[name], force=force, **how)
        reproducer.finish()
        return outcome


def test_a_stage_runs_and_is_then_cached(make_repository: MakeRepository) -> None:
    """A stage runs once; unchanged it is Cached; what the run-cache has is Restored."""
    root = make_repository(fan_out(1))
    lines: list[str] = []
    assert run_stage(root, "source", on_lines=lines.extend) is Outcome.RAN
    assert "> cat input.txt > source.txt" in lines
    assert run_stage(root, "source") is Outcome.CACHED
    (root / "dvc.lock").unlink()
    assert run_stage(root, "source") is Outcome.RESTORED
    assert run_stage(root, "source", force=True) is Outcome.RAN


def test_what_changed_is_not_restored_from_before(make_repository: MakeRepository) -> None:
    """After a change of a file or a param the old outputs do not come back, even if they are gone."""
    root = make_repository(
        {"a": stage("cat input.txt params.yaml > a", ("input.txt",), "a", params=["x"])}
    )
    for text in ("x: 1\n", "x: 2\n", "x: {y: [3]}\n", "x: {y: [4]}\n"):
        (root / "params.yaml").write_text(text)
        assert run_stage(root, "a") is Outcome.RAN
        assert (root / "a").read_text() == "input\n" + text
        assert dvc_status(root) == CLEAN
    (root / "input.txt").write_text("other\n")
    (root / "a").unlink()
    assert run_stage(root, "a") is Outcome.RAN
    (root / "params.yaml").write_text("x: 2\n")
    (root / "input.txt").write_text("input\n")
    assert run_stage(root, "a") is Outcome.RESTORED
    assert (root / "a").read_text() == "input\nx: 2\n"


def test_a_failed_command_says_why(make_repository: MakeRepository) -> None:
    """Its own error, or else its exit status and last line; and the last lines in full."""
    root = make_repository(
        {
            "told": stage("echo error: no good && exit 3", out="x"),
            "silent": stage("echo one; echo two; exit 3", out="y"),
        }
    )
    with pytest.raises(StageFailed, match="^told: no good$"):
        run_stage(root, "told")
    with pytest.raises(
        StageFailed, match="^silent: echo one; echo two; exit 3 exited with 3: two"
    ) as error:
        run_stage(root, "silent")
    assert error.value.lines == ("one", "two")


def test_the_command_sees_the_callers_environment(make_repository: MakeRepository) -> None:
    """It has the variables of the caller and those given, DVC's two, and no others."""
    policy = {"dvc-flow": {"gpus": 1}}
    root = make_repository({"env": stage("env > x", out="x", meta=policy)})
    callers = {"PATH": os.environ["PATH"], "OWN": "1"}
    run_stage(root, "env", environment=callers, resources=Resources(gpus=("7",)))
    seen = dict(line.split("=", 1) for line in (root / "x").read_text().splitlines())
    shells = {"PWD", "OLDPWD", "SHLVL", "_"}
    assert {name: value for name, value in seen.items() if name not in shells} == callers | {
        "CUDA_VISIBLE_DEVICES": "7", "DVC_ROOT": str(root), "DVC_STAGE": "env",
    }  # fmt: skip


def test_a_time_limit_ends_the_whole_stage(make_repository: MakeRepository) -> None:
    """A stage that takes too long is ended with all its processes."""
    policy = {"dvc-flow": {"timeout_minutes": 0.02}}
    command = "sleep 60 & sleep 60; echo > x"
    root = make_repository({"slow": stage(command, out="x", meta=policy)})
    with pytest.raises(StageTimedOut, match=r"longer than 1\.2 s"):
        run_stage(root, "slow")
    assert gone_within(root, 1)


def test_stopping_ends_the_whole_stage(make_repository: MakeRepository) -> None:
    """A stage that ignores SIGTERM is killed when the flow is told to stop."""
    root = make_repository({"deaf": stage("trap '' TERM; sleep 60 & wait; sleep 60", out="x")})
    stop = Stop()
    threading.Timer(1, stop.set).start()
    with pytest.raises(StageStopped):
        run_stage(root, "deaf", stop=stop)
    assert gone_within(root, 1)


def test_a_killed_stage_is_told_and_leaves_nothing(make_repository: MakeRepository) -> None:
    """When the stage's shell is killed, the stage fails and nothing is left."""
    root = make_repository({"slow": stage("sleep 60; echo > x", out="x")})

    def kill() -> None:
        deadline = time.monotonic() + 30
        while not (found := [p for p in processes_in(root) if "-c" in command_of(p)]):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        found[0].kill()

    thread = threading.Thread(target=kill)
    thread.start()
    with pytest.raises(StageFailed, match="slow: .* was killed by SIGKILL"):
        run_stage(root, "slow")
    thread.join()
    assert gone_within(root, 1)
    assert run("dvc", "status", cwd=root).returncode == 0


def test_what_depends_on_a_stage_sees_it_recorded(make_repository: MakeRepository) -> None:
    """A command that calls DVC finds the stages before it in dvc.lock, and no lock in its way."""
    root = make_repository(
        {
            "first": stage("date > a", out="a"),
            "second": stage("dvc status first > b; cp a c", ("a",), "b"),
        }
    )
    with engine(root) as (reproducer, nodes):
        assert [reproducer.run(node) for node in nodes.values()] == [Outcome.RAN] * 2
    assert (root / "b").read_text().strip() == CLEAN


def test_with_pull_what_changed_is_not_restored_from_before(
    make_repository: MakeRepository, tmp_path: Path
) -> None:
    """Looking for earlier runs in a remote does not hide that a dependency changed."""
    root = make_repository({"a": stage("cat input.txt > a", ("input.txt",), "a")})
    assert run("dvc", "remote", "add", "-d", "s", str(tmp_path / "s"), cwd=root).returncode == 0
    for text in ("one\n", "two\n", "three\n"):
        (root / "input.txt").write_text(text)
        with engine(root, pull=True, allow_missing=True) as (reproducer, nodes):
            assert reproducer.run(nodes["a"]) is Outcome.RAN
            reproducer.finish()
        assert (root / "a").read_text() == text


def test_stages_run_side_by_side_without_lock_errors(make_repository: MakeRepository) -> None:
    """Sixteen siblings at once all succeed, and the lock file is the one that DVC writes."""
    root = make_repository(fan_out(16))
    failures: list[BaseException] = []
    with engine(root) as (reproducer, nodes):
        reproducer.run(nodes["source"])

        def one(name: str) -> None:
            try:
                reproducer.run(nodes[name])
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=one, args=(f"leaf{i}",)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert failures == []
        reproducer.run(nodes["join"])
        reproducer.finish()
    assert dvc_status(root) == CLEAN
    ours = (root / "dvc.lock").read_bytes()
    (root / "dvc.lock").unlink()
    shutil.rmtree(root / ".dvc/cache")
    assert run("dvc", "repro", cwd=root).returncode == 0
    assert (root / "dvc.lock").read_bytes() == ours
