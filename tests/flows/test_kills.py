"""Whatever is killed, and whenever: nothing is left behind, and the next run completes.

KILLS says how often each is killed (`make soak` sets 20), FAN_OUTS how often the fan-out is run.
"""

import os
import random
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML

from tests.flows.conftest import CLEAN, Stages, dvc_status, fan_out, run
from tests.flows.services import Server, processes_below, wait_until, worker
from tests.flows.test_deployment import Project, deploy, ended_as, make_project, start_run
from tests.helpers import environment

pytestmark = pytest.mark.slow

KILLS = int(os.environ.get("KILLS", "1"))
FAN_OUTS = int(os.environ.get("FAN_OUTS", "1"))
WIDTH = 4
GPU = {"CUDA_VISIBLE_DEVICES": f"made-up-{os.getpid()}"}  # one to hand out, for this process

MakeRepository = Callable[[Stages], Path]


def moment(longest: float) -> float:
    """Return a random time, in seconds."""
    return random.uniform(0, longest)  # noqa: S311


def napping() -> Stages:
    """Return a fan-out whose stages take a second, each of which wants the one GPU."""
    stages = fan_out(WIDTH, "sleep 1")
    for name in stages:
        stages[name]["meta"] = {"dvc-flow": {"gpus": 1, "memory_gb": 1}}
    return stages


def flow_command(*arguments: str) -> list[str]:
    return ["dvc-flow", "--jobs", "4", *arguments]


def start_flow(root: Path, leads_there: dict[str, str]) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        flow_command(), cwd=root, env=environment(**leads_there, **GPU),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip


def nothing_is_left(folder: str) -> None:
    """Check that within 10 seconds no process of a stage is left."""
    wait_until(lambda: not processes_below(folder), 10, "the stages' end", every=0.1)


def the_next_run_completes(root: Path, leads_there: dict[str, str]) -> None:
    """Check that the lock file is whole, and that a run goes on to what `dvc repro` leaves."""
    lock = root / "dvc.lock"
    if lock.exists():
        assert set(YAML(typ="safe").load(lock.read_text())["stages"]) <= set(napping())
    done = run(*flow_command(), cwd=root, **leads_there, **GPU)
    assert done.returncode == 0, done.stdout + done.stderr
    assert dvc_status(root) == CLEAN
    ours = YAML(typ="safe").load(lock.read_text())
    lock.unlink()
    assert run("dvc", "repro", cwd=root).returncode == 0
    assert YAML(typ="safe").load(lock.read_text()) == ours


@pytest.mark.parametrize("_", range(KILLS))
def test_a_killed_flow(_: int, make_repository: MakeRepository, server: dict[str, str]) -> None:
    """SIGKILL of the flow."""
    root = make_repository(napping())
    flow = start_flow(root, server)
    time.sleep(2 + moment(9))
    flow.kill()
    flow.wait()
    nothing_is_left(str(root))
    the_next_run_completes(root, server)


@pytest.mark.parametrize("_", range(KILLS))
def test_a_killed_stage(_: int, make_repository: MakeRepository, server: dict[str, str]) -> None:
    """SIGKILL of a stage's command, or of the run's warden."""
    root = make_repository(napping())
    flow = start_flow(root, server)
    wait_until(lambda: psutil.Process(flow.pid).children(recursive=True), 60, "a stage", 0.05)
    time.sleep(moment(6))
    victims = psutil.Process(flow.pid).children(recursive=True)
    if victims:  # else the moment fell between two stages
        random.choice(victims).kill()  # noqa: S311
    flow.wait(120)
    nothing_is_left(str(root))
    the_next_run_completes(root, server)


@pytest.fixture(scope="module")
def mortal_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that tests may kill."""
    with Server(tmp_path_factory.mktemp("mortal")) as server:
        yield server


@pytest.mark.parametrize("_", range(KILLS))
def test_a_killed_server(_: int, make_repository: MakeRepository, mortal_server: Server) -> None:
    """SIGKILL of the server: the flow ends, and goes on when the server is back."""
    root = make_repository(napping())
    flow = start_flow(root, mortal_server.leads_there)
    time.sleep(2 + moment(9))
    mortal_server.kill()
    try:
        flow.wait(180)
    finally:
        mortal_server.start()
    nothing_is_left(str(root))
    the_next_run_completes(root, mortal_server.leads_there)


@pytest.fixture(scope="module")
def deployed(tmp_path_factory: pytest.TempPathFactory, mortal_server: Server) -> Project:
    project = make_project(tmp_path_factory.mktemp("workers"), "0 2 * * *")
    deploy(project, mortal_server)
    return project


if KILLS > 1:  # once, test_deployment does it, on the real graph

    @pytest.mark.parametrize("_", range(KILLS))
    def test_a_killed_worker(_: int, deployed: Project, mortal_server: Server) -> None:
        """SIGKILL of the worker: its flow ends by itself; another worker takes the next run."""
        name = deployed.origin.stem
        with worker(deployed.root, mortal_server) as first:
            run_id = start_run(mortal_server, "on-demand", force=True)
            wait_until(
                lambda: mortal_server.state(run_id) == "Running", 90, "the run's begin", every=0.2
            )
            time.sleep(moment(9))
            first.kill()
            nothing_is_left(name)
        assert mortal_server.state(run_id) in ("Crashed", "Completed")
        with worker(deployed.root, mortal_server):
            run_id = start_run(mortal_server, "on-demand", force=True)
            ended_as(mortal_server, run_id, "Completed", 180)


@pytest.mark.parametrize("_", range(FAN_OUTS))
def test_a_wide_fan_out(_: int, make_repository: MakeRepository, server: dict[str, str]) -> None:
    """Sixteen stages at once: no lock error, and a complete lock file."""
    root = make_repository(fan_out(16))
    done = run("dvc-flow", "--jobs", "16", cwd=root, **server)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "18 stages: 18 completed" in done.stdout
    assert len(YAML(typ="safe").load((root / "dvc.lock").read_text())["stages"]) == 18
    assert dvc_status(root) == CLEAN
