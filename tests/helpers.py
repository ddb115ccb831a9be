"""What several test files share: a small data set, a small project, a real HTTP server."""

import gzip
import http.server
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.core.files import sha256
from pipeline.datasets import idx
from pipeline.datasets.splits import Split

ROOT = Path(__file__).parent.parent
SIDE, CLASSES = 12, 3
IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}


def make_images(count: int, seed: int = 0) -> Split:
    """Return noise with a bright third that tells the class: easy, but not trivial."""
    random = np.random.default_rng(seed)
    labels = (np.arange(count) % CLASSES).astype(np.uint8)
    images = random.integers(0, 128, (count, SIDE, SIDE, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[4 * label : 4 * label + 4] += 64
    return Split(images, labels)


def write_idx(path: Path, array: NDArray[Any]) -> None:
    """Write an array of any type and number of dimensions as a plain IDX file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = array.dtype.str[1:]
    header = struct.pack(f">HBB{array.ndim}I", 0, IDX_TYPES[kind], array.ndim, *array.shape)
    path.write_bytes(header + array.astype(f">{kind}").tobytes())


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
        params["run"] = {
            "datasets": ["tiny"], "variants": ["tiny_conv", "tiny_dense"], "ensembles": [],
        }  # fmt: skip
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
            "report": {},
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


def stage_command(stage: str, dataset: str = "", variant: str = "") -> list[str]:
    """Return the command of a stage, as dvc.yaml has it; `ensemble` takes an ensemble's name."""
    by_dataset = ["--dataset", dataset] if dataset else []
    option = "--ensemble" if stage == "ensemble" else "--variant"
    by_variant = [option, variant] if variant else []
    return [sys.executable, "-m", f"pipeline.{stage}", *by_dataset, *by_variant]


def run_stage(
    *arguments: str, cwd: Path | None = None, **env: str
) -> subprocess.CompletedProcess[str]:
    """Run ``python -m pipeline.…`` as DVC does."""
    return subprocess.run(
        stage_command(*arguments),
        cwd=cwd,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"} | env,
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


def _succeed(
    command: Sequence[str], cwd: Path, env: dict[str, str], timeout_s: float
) -> "subprocess.CompletedProcess[str]":
    done = subprocess.run(
        command, cwd=cwd, env=env, capture_output=True, text=True, timeout=timeout_s, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done


def run(*command: str, cwd: Path, **more: str) -> str:
    """Run a command as a user would, and return what it printed."""
    done = _succeed(command, cwd, environment(**more), timeout_s=600)
    return done.stdout + done.stderr


def run_python(code: str, *arguments: str, **env: str) -> str:
    """Run code in a Python of its own, and return what it wrote to stdout."""
    command = [sys.executable, "-c", code, *arguments]
    return _succeed(command, ROOT, environment(**env), timeout_s=120).stdout


class Mirror(http.server.ThreadingHTTPServer):
    """A real HTTP server on the loopback whose faults a test chooses.

    Set `content`, `redirects` and `headers` by path; `faults` holds, for the next requests,
    ``"500"``, ``"cut"`` (half of the body, then the connection is closed), ``"stall"`` (no body for
    two seconds), ``"trickle"`` (a byte at a time), ``"html"`` or ``"407"`` (of a proxy); `asked`
    records the paths of the requests.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.content: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        self.headers: dict[str, str] = {}
        self.faults: list[str] = []
        self.asked: list[str] = []

    @property
    def url(self) -> str:
        """The server's address."""
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Mirror

    def do_GET(self) -> None:
        path = self.path.lstrip("/")
        self.server.asked.append(path)
        fault = self.server.faults.pop(0) if self.server.faults else ""
        if elsewhere := self.server.redirects.get(path):
            self.send_response(302)
            self.send_header("Location", elsewhere)
            self.end_headers()
            return
        if fault == "407":
            self.send_error(407, "Proxy Authentication Required")
            return
        body = self.server.content.get(path)
        if body is None or fault == "500":
            self.send_error(500 if fault else 404)
            return
        if fault == "html":
            body = b"<html>Please log in</html>"
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        with suppress(BrokenPipeError, ConnectionResetError):  # it may be given up
            if fault == "stall":
                time.sleep(2)
            elif fault == "trickle":
                for byte in body:
                    self.wfile.write(bytes([byte]))
                    time.sleep(0.02)
            else:
                self.wfile.write(body[: len(body) // 2] if fault == "cut" else body)

    do_CONNECT = do_GET  # noqa: N815 - a proxy that opens no tunnel

    def log_message(self, *_: object) -> None:
        pass
