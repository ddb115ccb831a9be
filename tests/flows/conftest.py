"""A real DVC repository of small stages, and a real Prefect server."""

import os
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.flows.services import Server
from tests.helpers import environment

# Prefect reads these while it is imported: a test neither finds nor touches the user's own.
os.environ["PREFECT_HOME"] = tempfile.mkdtemp(prefix="prefect-")
os.environ.pop("PREFECT_API_URL", None)

Stages = dict[str, dict[str, Any]]


def stage(cmd: str, deps: tuple[str, ...] = (), out: str = "", **more: Any) -> dict[str, Any]:
    return {"cmd": cmd, "deps": list(deps), "outs": [out] if out else [], **more}


def fan_out(width: int, work: str = "true") -> Stages:
    """Return a source, `width` stages that depend on it, and one that joins them."""
    leaves = {
        f"leaf{i}": stage(
            f"{work} && cat source.txt > leaf{i}.txt", ("source.txt",), f"leaf{i}.txt"
        )
        for i in range(width)
    }
    joined = tuple(f"leaf{i}.txt" for i in range(width))
    return {
        "source": stage("cat input.txt > source.txt", ("input.txt",), "source.txt"),
        **leaves,
        "join": stage("cat leaf*.txt > join.txt", joined, "join.txt"),
    }


def run(*command: str, cwd: Path, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=cwd, env=environment(**more), capture_output=True, text=True, timeout=300,
        check=False,
    )  # fmt: skip


def dvc_status(root: Path) -> str:
    return run("dvc", "status", cwd=root).stdout.strip()


CLEAN = "Data and pipelines are up to date."


@pytest.fixture
def make_repository(tmp_path: Path) -> Callable[[Stages], Path]:
    """Return a function that makes a DVC repository with some stages."""

    def make(stages: Stages) -> Path:
        root = tmp_path / "repository"
        root.mkdir()
        (root / "input.txt").write_text("input\n")
        write_stages(root, stages)
        for command in (
            ("git", "init", "-q"),
            ("dvc", "init", "-q"),
            ("dvc", "config", "core.analytics", "false"),
            ("git", "add", "-A"),
            ("git", "commit", "-qm", "first"),
        ):
            done = run(*command, cwd=root)
            assert done.returncode == 0, done.stderr
        return root

    return make


def write_stages(root: Path, stages: Stages) -> None:
    with open(root / "dvc.yaml", "w") as file:
        YAML().dump({"stages": stages}, file)


@pytest.fixture(scope="session")
def prefect(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """Start a Prefect server on SQLite."""
    with Server(tmp_path_factory.mktemp("prefect")) as server:
        yield server


@pytest.fixture(scope="session")
def server(prefect: Server) -> dict[str, str]:
    """Return the environment that leads to the server."""
    return prefect.leads_there
