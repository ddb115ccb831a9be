"""What several test files share: a small data set, a small project, a real HTTP server."""

import gzip
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from ruamel.yaml import YAML

from benchmarks.processes import stage_command
from pipeline import idx, paths
from pipeline.data import Split
from pipeline.files import sha256

ROOT = Path(__file__).parent.parent
SIDE, CLASSES = 12, 3


def make_images(count: int, seed: int = 0) -> Split:
    """Return noise with a bright third that tells the class: easy, but not trivial."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    images = random.integers(0, 128, (count, SIDE, SIDE, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 64
    return Split(images, labels)


def write_raw(folder: Path, train: Split, test: Split) -> dict[str, Path]:
    """Write the four gzip-compressed IDX files; return their paths by role."""
    arrays: dict[str, NDArray[np.uint8]] = {
        "train_images": train.images[..., 0],
        "train_labels": train.labels,
        "test_images": test.images[..., 0],
        "test_labels": test.labels,
    }
    for role, array in arrays.items():
        idx.write(folder / role, array)
        (folder / role).write_bytes(gzip.compress((folder / role).read_bytes(), mtime=0))
    return {role: folder / role for role in arrays}


def edit_params(path: Path, change: Callable[[Any], None]) -> None:
    """Change a params.yaml in place."""
    yaml = YAML()
    content = yaml.load(path.read_text())
    change(content)
    with open(path, "w") as file:
        yaml.dump(content, file)


def add_tiny(mirror: Path) -> Callable[[Any], None]:
    """Return a change of params: the data set `tiny` on a mirror, and two variants for it."""
    files = write_raw(mirror, make_images(120, seed=1), make_images(60, seed=2))

    def change(params: Any) -> None:
        params["run"] = {"datasets": ["tiny"], "variants": ["tiny_conv", "tiny_dense"]}
        params["datasets"]["tiny"] = {
            "classes": CLASSES,
            "download": {
                "source": "mirrors",
                "mirrors": [str(mirror)],
                "files": {
                    role: {"name": path.name, "sha256": sha256(path)}
                    for role, path in files.items()
                },
            },
            "preprocess": {"validation_size": 30},
            "train": {"samples": None, "epochs": None},
        }
        common = {
            "input_size": None,
            "initializer": {"type": "he_normal"},
            "batch_size": 16,
            "learning_rate": 0.01,
        }
        params["variants"]["tiny_conv"] = common | {
            "layers": [
                {"type": "conv", "filters": 4, "kernel": 3},
                {"type": "max_pool", "size": 2, "stride": 2},
                {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75},
                {"type": "dropout", "rate": 0.1},
                {"type": "dense", "units": 8},
            ],
            "budget": {"samples": 1600},
        }
        params["variants"]["tiny_dense"] = common | {
            "layers": [{"type": "dense", "units": 8}],
            "budget": {"epochs": 4},
        }

    return change


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Enter a folder with the real params.yaml, to which `tiny` and its variants are added."""
    root = tmp_path / "project"
    root.mkdir()
    shutil.copy(ROOT / paths.PARAMS, root)
    edit_params(root / paths.PARAMS, add_tiny(tmp_path / "mirror"))
    monkeypatch.chdir(root)
    return root


def make_repository(root: Path, change: Callable[[Any], None]) -> Path:
    """Make a repository of git and DVC with this project's code, and its params changed."""
    root.mkdir()
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pipeline", root / "pipeline", ignore=ignore)
    for name in ("dvc.yaml", "params.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    edit_params(root / "params.yaml", change)
    for command in (["git", "init", "-q"], ["dvc", "init", "-q"]):
        subprocess.run(command, cwd=root, env=environment(), check=True, timeout=60)
    shutil.copy(ROOT / ".dvc/config", root / ".dvc/config")
    shutil.copytree(ROOT / ".dvc/plots", root / ".dvc/plots")
    return root


def run_stage(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pipeline.…`` as DVC does."""
    return subprocess.run(
        stage_command(*arguments),
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def assert_one_clear_line(
    result: subprocess.CompletedProcess[str], *parts: str, code: int = 1
) -> None:
    """Check that a stage ended with one error line that has all `parts`, and with no traceback."""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert result.returncode == code, result.stderr
    assert len(errors) == 1, result.stderr
    assert "Traceback" not in result.stderr
    for part in parts:
        assert part in errors[0]


def no_parts(folder: Path) -> bool:
    """Tell whether no half-written file is left below `folder`."""
    return not list(folder.rglob("*.part"))


def environment(**more: str) -> dict[str, str]:
    """Return a user's environment: this Python first, the project importable, git with a name."""
    return os.environ | {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "GIT_CONFIG_GLOBAL": os.devnull,
        "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c",
        "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c",
    } | more  # fmt: skip


class Mirror(http.server.ThreadingHTTPServer):
    """A real HTTP server on the loopback whose faults a test chooses.

    Set `content` and `redirects` by path; `faults` holds, for the next requests, ``"500"``,
    ``"cut"`` (half of the body, then the connection is closed), ``"trickle"`` (a byte at a time) or
    ``"html"``; `ranges` records the Range headers.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.faults: list[str] = []
        self.ranges: list[str | None] = []
        self.resumes = True

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        wanted = self.headers.get("Range")
        self.server.ranges.append(wanted)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if elsewhere := self.server.redirects.get(self.path.lstrip("/")):
            self.send_response(302)
            self.send_header("Location", elsewhere)
            self.end_headers()
            return
        body = self.server.content.get(self.path.lstrip("/"))
        if body is None or fault == "500":
            self.send_error(500 if fault else 404)
            return
        if fault == "html":
            body = b"<html>Please log in</html>"
        start = 0
        if wanted and self.server.resumes:
            start = int(wanted.removeprefix("bytes=").rstrip("-"))
            if start >= len(body):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(body) - 1}/{len(body)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        stop = start + (len(body) - start) // 2 if fault == "cut" else len(body)
        with suppress(BrokenPipeError, ConnectionResetError):  # it may be given up
            if fault == "trickle":
                for byte in body[start:stop]:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
            self.wfile.write(body[start:stop])

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def mirror() -> Iterator[Mirror]:
    """Serve files over HTTP."""
    with Mirror() as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


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


def _succeed(
    command: Sequence[str], cwd: Path, timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command,
        cwd=cwd,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run(*command: str, cwd: Path) -> str:
    """Run a command as a user would, and return what it printed."""
    done = _succeed(command, cwd, timeout_s=300)
    return done.stdout + done.stderr


def run_python(code: str, *arguments: str) -> str:
    """Run code in a Python of its own, and return what it wrote to stdout."""
    return _succeed([sys.executable, "-c", code, *arguments], ROOT, timeout_s=120).stdout


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
