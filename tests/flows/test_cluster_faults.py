"""Workers, coordinators, schedulers and stages that die: what ends, and what goes on."""

import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest

from dvc_flow.cluster import commands
from dvc_flow.cluster.machine import HOME
from dvc_flow.errors import ClusterError
from tests.flows.clusters import (
    TIMES,
    Cluster,
    commands_below,
    dask_worker,
    flow,
    napping,
    stages_below,
    start,
)
from tests.flows.conftest import CLEAN, Stages, contents, dvc_status, run, stage
from tests.flows.services import Server, Service, free_port, wait_until
from tests.flows.test_deployment import small
from tests.flows.test_flow import states
from tests.helpers import make_repository as make_project

pytestmark = pytest.mark.slow

MakeRepository = Callable[[Stages], Path]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_a_worker_that_ends_leaves_its_stage_to_another(
    signum: int, make_shared: MakeRepository, cluster: Cluster, server: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """Preempted or killed: nothing of the stage is left there, and it runs elsewhere."""
    stages, begun = napping(tmp_path)
    root = make_shared(stages)
    first, _second = cluster.add(), cluster.add()
    process = start(root, server, cluster)
    wait_until(lambda: len(list(begun.iterdir())) == 2, 60, "both stages")
    victim = first.process.pid if signum == signal.SIGTERM else dask_worker(first).pid  # type: ignore[union-attr]
    os.kill(victim, signum)
    wait_until(lambda: not stages_below(first.folder), 15, "the stage's end")
    out, _err = process.communicate(timeout=180)
    assert process.returncode == 0, out
    assert contents(root)["a"] == contents(root)["b"] == b"input\n"
    assert dvc_status(root) == CLEAN


def test_a_frozen_worker_is_given_up(
    make_shared: MakeRepository, tmp_path: Path, server: dict[str, str]
) -> None:
    """One that does not answer for its time to live loses its stage to another."""
    stages, begun = napping(tmp_path)
    root = make_shared(stages)
    folder = tmp_path / "cluster"
    folder.mkdir()
    with ExitStack() as stack:
        cluster = Cluster(folder, stack, "--worker-ttl", "5")
        first, _second = cluster.add(), cluster.add()
        process = start(root, server, cluster)
        wait_until(lambda: len(list(begun.iterdir())) == 2, 60, "both stages")
        frozen = dask_worker(first)
        frozen.suspend()
        try:
            out, _err = process.communicate(timeout=180)
        finally:
            with suppress(psutil.Error):
                frozen.resume()
        assert process.returncode == 0, out
        assert dvc_status(root) == CLEAN
        wait_until(lambda: not stages_below(folder), 30, "the end of all stages")


def test_stages_end_with_their_coordinator(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL of the run ends its stages everywhere; workers take the next run."""
    stages, begun = napping(tmp_path)
    root = make_shared(stages)
    cluster.add("--jobs", "2")
    process = start(root, server, cluster)
    wait_until(lambda: len(list(begun.iterdir())) == 2, 60, "both stages")
    process.kill()
    process.communicate()
    wait_until(lambda: not stages_below(cluster.folder), 30, "the end of all stages")
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dvc_status(root) == CLEAN


def test_a_dead_scheduler_ends_the_run_in_one_line(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str], tmp_path: Path
) -> None:
    """Nothing is left running; when it is back, its worker is too, and the next run goes on."""
    stages, begun = napping(tmp_path)
    stages["quick"] = stage("cat input.txt > quick", ("input.txt",), "quick")
    root = make_shared(stages)
    cluster.add("--jobs", "3")
    process = start(root, server, cluster)
    wait_until(lambda: len(list(begun.iterdir())) == 2, 60, "both stages")
    wait_until((root / "dvc.lock").exists, 60, "the record of the quick one")
    cluster.scheduler.kill()
    out, _err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert "Traceback" not in out
    assert "the scheduler is gone" in out
    wait_until(lambda: not stages_below(cluster.folder), 30, "the end of all stages")
    cluster.scheduler.log.unlink()
    cluster.scheduler.start()
    done = flow(root, server, cluster)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 stages: 2 completed; 1 cached" in done.stdout


def test_a_stage_that_kills_its_workers_fails(
    make_shared: MakeRepository, cluster: Cluster, server: dict[str, str]
) -> None:
    """After three workers it is given up; what does not depend on it is done."""
    kill = (
        "import psutil\n"
        "for each in psutil.Process().parents():\n"
        "    if 'spawn_main' in ' '.join(each.cmdline()):\n"
        "        each.kill()\n"
    )
    poison = stage("python kill.py; sleep 30", ("kill.py",), "x")
    root = make_shared({"poison": poison, "good": stage("echo > g", out="g")})
    (root / "kill.py").write_text(kill)
    cluster.add()
    done = flow(root, server, cluster, "--keep-going")
    assert done.returncode == 1
    assert "poison: 3 workers died while they ran it" in done.stdout
    assert (root / "g").exists()


def test_a_training_goes_on_on_another_machine(
    cluster: Cluster, prefect: Server, server: dict[str, str], tmp_path: Path
) -> None:
    """Where machines share a folder for checkpoints, it resumes from the last one, to the same bytes."""

    def longer(params: Any) -> None:
        small(params)
        params["datasets"]["digits"]["train"] = {"samples": 640, "epochs": 200}
        params["runtime"] = {"checkpoint_every": {"steps": 100}}

    root = make_project(tmp_path / "project", longer)
    for command in (
        ("dvc", "remote", "add", "-d", "store", str(tmp_path / "store")),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "first"),
        ("dvc", "repro", "-q", "preprocess@digits"),
    ):
        assert run(*command, cwd=root).returncode == 0
    undisturbed = Path(shutil.copytree(root, tmp_path / "undisturbed", symlinks=True))
    shared = tmp_path / "checkpoints"
    workers = [cluster.add(ALEXNET_MNIST_CHECKPOINTS=str(shared)) for _ in range(2)]
    training = ("train@digits-small",)
    process = start(root, server, cluster, *training)
    wait_until(lambda: [*shared.rglob("step_*")], 90, "a checkpoint")
    busy = next(each for each in workers if "pipeline.train" in commands_below(each.folder))
    dask_worker(busy).kill()
    out, _err = process.communicate(timeout=180)
    assert process.returncode == 0, out
    logs = prefect.ask("logs/filter", sort="TIMESTAMP_DESC")
    assert any("resuming after step" in each["message"] for each in logs)
    assert run("dvc", "repro", *training, cwd=undisturbed).returncode == 0
    assert contents(root)["dvc.lock"] == contents(undisturbed)["dvc.lock"]


def laborious(begun: Path) -> Stages:
    """Return stages that take random times; each adds its process to a file when it begins."""
    policy = {"meta": {"dvc-flow": {"retries": 1, "retry_delay_s": 0.1}}}

    def work(name: str, *deps: str) -> dict[str, Any]:
        nap = random.uniform(0.3, 2.5)  # noqa: S311
        command = f"echo $$ >> {begun}/{name}; sleep {nap:.2f}; cat {' '.join(deps)} > {name}"
        return stage(command, deps, name) | policy

    middle = {f"middle{n}": work(f"middle{n}", "input.txt") for n in range(6)}
    return {**middle, "last": work("last", *middle)}


def strike(victim: str, cluster: Cluster, run: "subprocess.Popen[str]", begun: Path) -> None:
    """Kill or freeze what is named, whatever it does at the moment."""
    match victim:
        case "worker":
            dask_worker(random.choice(cluster.workers)).kill()  # noqa: S311
        case "frozen worker":
            dask_worker(random.choice(cluster.workers)).suspend()  # noqa: S311
        case "coordinator":
            run.kill()
        case "scheduler":
            cluster.scheduler.kill()
        case "stage":
            with suppress(psutil.Error, ValueError):
                newest = max(begun.iterdir(), key=lambda file: file.stat().st_mtime)
                psutil.Process(int(newest.read_text().split()[-1])).kill()


@pytest.mark.parametrize("victim", ["worker", "frozen worker", "coordinator", "scheduler", "stage"])
def test_nothing_is_lost_whatever_dies_at_any_moment(
    victim: str, make_shared: MakeRepository, server: dict[str, str],
    tmp_path: Path,
) -> None:  # fmt: skip
    """The run, or the next one, finishes; only what was running starts again; nothing is left."""
    begun, folder = tmp_path / "begun", tmp_path / "cluster"
    folder.mkdir()
    root = make_shared(laborious(begun))
    with ExitStack() as stack:
        cluster = Cluster(folder, stack, "--worker-ttl", "5")
        workers = [cluster.add(), cluster.add()]
        for turn in range(TIMES):
            shutil.rmtree(begun, ignore_errors=True)
            begun.mkdir()
            (root / "input.txt").write_text(f"{turn}\n")
            wait_until(lambda: all(map(has_dask, workers)), 90, "the workers")
            process = start(root, server, cluster)
            wait_until(lambda: any(begun.iterdir()), 60, "the first stage")
            time.sleep(random.uniform(0, 6))  # noqa: S311
            strike(victim, cluster, process, begun)
            out, _err = process.communicate(timeout=120)
            assert "Traceback" not in out
            if victim in ("coordinator", "scheduler"):
                if process.returncode:
                    assert victim == "coordinator" or "the scheduler is gone" in out
                    wait_until(lambda: not stages_below(folder), 30, "the end of all stages")
                if victim == "scheduler":
                    cluster.scheduler.log.unlink()
                    cluster.scheduler.start()
                again = flow(root, server, cluster)
                assert again.returncode == 0, again.stdout + again.stderr
            else:
                assert process.returncode == 0, out
            for each in workers:
                with suppress(psutil.Error, StopIteration):
                    dask_worker(each).resume()
            wait_until(lambda: not stages_below(folder), 30, "the end of all stages")
            assert (root / "last").read_text() == f"{turn}\n" * 6
            assert dvc_status(root) == CLEAN
            starts = [len(file.read_text().split()) for file in begun.iterdir()]
            assert len(starts) == 7
            assert sum(starts) <= 7 + len(workers)
            assert "Running" not in states(server).values()


def has_dask(worker: Service) -> bool:
    try:
        return dask_worker(worker).is_running()
    except (StopIteration, psutil.Error):
        return False


def test_a_worker_gives_up_if_no_scheduler_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It waits for a while, and ends in one line."""
    monkeypatch.setattr(commands, "JOIN_S", 2)
    monkeypatch.setenv(HOME, "")
    monkeypatch.setenv("PATH", os.environ["PATH"])
    address = f"tcp://127.0.0.1:{free_port()}"
    with pytest.raises(ClusterError, match=f"{address}: no scheduler answered for 2 s"):
        commands.worker([address, "--home", str(tmp_path)])
