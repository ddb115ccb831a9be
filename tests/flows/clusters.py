"""Real schedulers and workers, each with a home of its own."""

import os
import subprocess
import uuid
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil

from tests.flows.conftest import Stages, contents, run, stage
from tests.flows.services import Service, command_of, free_port, processes_below, wait_until
from tests.helpers import environment

TIMES = int(os.environ.get("CLUSTERS", "1"))
PREFECTS = {"PREFECT_API_URL": "", "PREFECT_HOME": "/nowhere"}  # what no worker may need


class Scheduler(Service):
    """A scheduler on this machine."""

    def __init__(self, folder: Path, *more: str) -> None:
        port = free_port()
        self.address = f"tcp://127.0.0.1:{port}"
        super().__init__(folder, "dvc-flow", "scheduler", "--port", str(port), *more)

    def start(self) -> "Scheduler":
        super().start()
        wait_until(lambda: "scheduler at" in self.log.read_text(), 60, "the scheduler")
        return self


def make_worker(folder: Path, address: str, name: str, *more: str, **env: str) -> Service:
    """Return a worker, yet to be started, that has nothing but its own home."""
    home = folder / name
    home.mkdir()
    command = ("dvc-flow", "worker", address, "--name", name, *more)
    made = Service(home, *command, HOME=str(home), **PREFECTS)
    made.environment |= env
    return made


class Cluster:
    """A scheduler and its workers."""

    def __init__(self, folder: Path, stack: ExitStack, *more: str) -> None:
        self.folder, self.stack = folder, stack
        self.scheduler = stack.enter_context(Scheduler(folder, *more))
        self.workers: list[Service] = []

    @property
    def address(self) -> str:
        return self.scheduler.address

    def add(self, *more: str, **env: str) -> Service:
        """Start one more worker; wait until it has joined."""
        name = f"machine{len(self.workers)}"
        new = self.stack.enter_context(make_worker(self.folder, self.address, name, *more, **env))
        self.workers.append(new)
        wait_until(lambda: "working for" in new.log.read_text(), 60, name)
        return new


def flow(root: Path, server: dict[str, str], cluster: Cluster, *more: str) -> Any:
    return run("dvc-flow", "--cluster", cluster.address, *more, cwd=root, **server)


NAP = "touch {0}/$DVC_STAGE; sleep 15; cat input.txt > {1}"


def napping(tmp_path: Path) -> tuple[Stages, Path]:
    """Return two stages that take their time, and a folder in which they say that they began."""
    begun = tmp_path / "begun"
    begun.mkdir()
    return {
        name: stage(NAP.format(begun, name), ("input.txt",), name) for name in ("a", "b")
    }, begun


def start(
    root: Path, server: dict[str, str], cluster: Cluster, *more: str
) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        ["dvc-flow", "--cluster", cluster.address, *more], cwd=root, env=environment(**server),
        text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def dask_worker(worker: Service) -> psutil.Process:
    """Return the process in which Dask runs tasks; the nanny is its parent."""
    assert worker.process is not None
    family = psutil.Process(worker.process.pid).children(recursive=True)
    return next(each for each in family if "spawn_main" in " ".join(each.cmdline()))


def commands_below(folder: Path) -> str:
    return " ".join(word for p in processes_below(str(folder)) for word in command_of(p))


def stages_below(folder: Path) -> list[psutil.Process]:
    return [p for p in processes_below(str(folder)) if "sleep" in " ".join(command_of(p))]


def by_dvc(root: Path) -> dict[str, bytes]:
    """Return what `dvc repro` leaves in a fresh clone of a repository."""
    fresh = root.with_name(f"fresh-{uuid.uuid4().hex}")
    assert run("git", "clone", "-q", str(root), str(fresh), cwd=root).returncode == 0
    done = run("dvc", "repro", cwd=fresh)
    assert done.returncode == 0, done.stdout + done.stderr
    return contents(fresh)
