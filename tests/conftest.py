"""Fixtures that several test files share."""

import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import hypothesis  # noqa: F401 - it looks at what the framework's import hides from the collector
import pytest

from pipeline.core import paths
from tests.helpers import ROOT, Mirror, add_tiny, edit_params, make_repository, run
from tests.history import make_history

# A shell lets what it starts in the background ignore SIGINT, and our children inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Files whose tests wait for services: with several processes, begun last they would end last.
LONGEST = ("test_deployment", "test_cluster", "test_kills", "test_server", "test_automations")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the files that take longest."""
    items.sort(key=lambda item: item.path.stem not in LONGEST)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the real params.yaml, to which `tiny` and its variants are added."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(ROOT / paths.PARAMS, root)
    edit_params(root / paths.PARAMS, add_tiny(tmp_path / "mirror"))
    monkeypatch.chdir(root)
    if tensorflow := sys.modules.get("tensorflow"):
        # It refuses to change its threads once a process has computed, as this one may have.
        of_threads = tensorflow.config.threading
        monkeypatch.setattr(of_threads, "set_intra_op_parallelism_threads", lambda _: None)
    return root


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """Serve files over HTTP."""
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


@pytest.fixture
def no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let downloads be tried again at once."""
    monkeypatch.setattr("pooch.core.time", SimpleNamespace(sleep=lambda _: None))


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """Mount a real file system of 64 KiB."""
    folder = tmp_path / "small_disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", folder],
        capture_output=True,
        check=False,
    )
    if mounted.returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.fixture(scope="session")
def reproduced(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clone of the project with the small data set, reproduced and committed."""
    folder = tmp_path_factory.mktemp("clone")
    root = make_repository(folder / "project", add_tiny(folder / "mirror"))
    run("dvc", "repro", cwd=root)
    run("git", "add", "-A", cwd=root)
    run("git", "commit", "-qm", "first", cwd=root)
    return root


@pytest.fixture
def repository(reproduced: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return Path(shutil.copytree(reproduced, tmp_path / "project", symlinks=True))


@pytest.fixture(scope="session")
def made_history(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with a history of results; see `make_history`."""
    return make_history(tmp_path_factory.mktemp("history") / "project")


@pytest.fixture
def history(made_history: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a copy of it, which a test may change."""
    root = Path(shutil.copytree(made_history, tmp_path / "project", symlinks=True))
    monkeypatch.chdir(root)
    return root
