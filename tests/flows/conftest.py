"""A real DVC repository of small stages, and a real Prefect server."""

import os
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, chdir, contextmanager
from difflib import unified_diff
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from ruamel.yaml import YAML

from dvc_flow.engine import Engine
from dvc_flow.repository import Node, Repository, Selection
from tests.flows.services import Server
from tests.helpers import environment

if TYPE_CHECKING:
    from tests.flows.clusters import Cluster

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


def contents(root: Path) -> dict[str, bytes]:
    """Return every file but git's and DVC's temporary ones, with the cache and its permissions."""
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file() and not {".git", "tmp"} & set(path.relative_to(root).parts)
    }


def difference(ours: dict[str, bytes], theirs: dict[str, bytes]) -> str:
    """Return the first file that differs, and how; nothing if there is none."""
    for name in sorted(ours.keys() | theirs.keys()):
        if ours.get(name) != theirs.get(name):
            one, other = (
                each.get(name, b"(none)").decode().splitlines() for each in (theirs, ours)
            )
            lines = unified_diff(one, other, "dvc repro", "the flow", n=1, lineterm="")
            return "\n".join([name, *lines])
    return ""


def dvc_status(root: Path) -> str:
    return run("dvc", "status", cwd=root).stdout.strip()


CLEAN = "Data and pipelines are up to date."


def plan(root: Path, *targets: str, **how: bool) -> list[Node]:
    """Plan as the flow does in a repository's root."""
    with chdir(root):
        return Repository().plan(Selection(targets), **how)


@contextmanager
def engine(root: Path, *targets: str, **how: Any) -> Iterator[tuple[Engine, dict[str, Node]]]:
    """Enter a repository, and yield an engine with the nodes of a plan by their names."""
    of_plan = {name: how.pop(name) for name in ("push",) if name in how}
    with chdir(root):
        repository = Repository()
        nodes = repository.plan(Selection(targets), pull=how.get("pull", False), **of_plan)
        how.setdefault("environment", environment())
        yield Engine(repository, nodes, **how), {node.name: node for node in nodes}


@pytest.fixture(scope="session")
def empty_repository(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A DVC repository without stages."""
    root = tmp_path_factory.mktemp("empty") / "repository"
    root.mkdir()
    (root / "input.txt").write_text("input\n")
    commands = (("git", "init", "-q"), ("dvc", "init", "-q"))
    for command in (*commands, ("dvc", "config", "core.analytics", "false")):
        done = run(*command, cwd=root)
        assert done.returncode == 0, done.stderr
    return root


@pytest.fixture
def make_repository(empty_repository: Path, tmp_path: Path) -> Callable[[Stages], Path]:
    """Return a function that makes a DVC repository with some stages."""

    def make(stages: Stages) -> Path:
        root = Path(shutil.copytree(empty_repository, tmp_path / "repository", symlinks=True))
        write_stages(root, stages)
        for command in (("git", "add", "-A"), ("git", "commit", "-qm", "first")):
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


@pytest.fixture
def in_process(prefect: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Let flows run in this process, on the server."""
    from prefect.settings import PREFECT_API_URL
    from prefect.settings.context import temporary_settings

    for name, value in environment().items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("PREFECT_LOGGING_LEVEL", "CRITICAL")
    with temporary_settings({PREFECT_API_URL: prefect.url}):
        yield


@pytest.fixture
def cluster(tmp_path: Path) -> "Iterator[Cluster]":
    """A scheduler without workers."""
    from tests.flows.clusters import Cluster

    folder = tmp_path / "cluster"
    folder.mkdir()
    with ExitStack() as stack:
        yield Cluster(folder, stack)


@pytest.fixture
def make_shared(
    make_repository: Callable[[Stages], Path], tmp_path: Path
) -> Callable[[Stages], Path]:
    """Return a function that makes a repository with a DVC remote."""

    def with_remote(stages: Stages) -> Path:
        root = make_repository(stages)
        done = run("dvc", "remote", "add", "-d", "store", str(tmp_path / "store"), cwd=root)
        assert done.returncode == 0, done.stderr
        assert run("git", "commit", "-qam", "remote", cwd=root).returncode == 0
        return root

    return with_remote
