"""Small trained models, drawn pictures, and a real server for the tests of answers."""

import io
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageOps

from pipeline.core import paths
from pipeline.network import storage
from pipeline.network.build import Description, build
from pipeline.network.chunks import Evaluate
from tests.helpers import ROOT, edit_params
from tests.network.helpers import network

SETTINGS = Evaluate(memory_budget_mb=64, chunk_size="auto", precision="float32")
SIZE = 140  # of the drawn pictures


def save_model(
    dataset: str,
    variant: str,
    seed: int = 0,
    *,
    classes: int = 10,
    side: int = 28,
    channels: int = 1,
    **more: Any,
) -> Description:
    """Save a small network with initial weights, as if it had been trained."""  # fmt: skip
    row = network(
        {"type": "conv", "filters": 3, "kernel": 3, "stride": 2, "activation": "tanh"},
        {"type": "dense", "units": 24, "activation": "tanh"},
    )
    description = Description(
        dataset=dataset, variant=variant, image_shape=[side, side, channels], classes=classes,
        network=row, **more,
    )  # fmt: skip
    storage.save(paths.model(dataset, variant, seed), build(description, seed=seed), description)
    return description


def add_pictures(longer_side: int = 20, centre: str = "mass") -> None:
    """Say in params.yaml how the images of `tiny` were made."""
    edit_params(
        paths.PARAMS,
        lambda params: params["datasets"]["tiny"].update(
            pictures={"longer_side": longer_side, "centre": centre}
        ),
    )


def draw_two(size: int = SIZE, ink: Any = 0, ground: Any = 255, mode: str = "L") -> Image.Image:
    """Return a picture of something like a two, with thick strokes."""
    picture = Image.new(mode, (size, size), ground)
    pen = ImageDraw.Draw(picture)
    width = max(2, size // 12)
    box = [size * 0.32, size * 0.2, size * 0.64, size * 0.5]
    pen.arc(box, 180, 60, fill=ink, width=width)
    pen.line([size * 0.6, size * 0.44, size * 0.32, size * 0.78], fill=ink, width=width)
    pen.line([size * 0.3, size * 0.78, size * 0.7, size * 0.78], fill=ink, width=width)
    return picture


def encode(picture: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    """Return the content of a picture's file."""
    content = io.BytesIO()
    picture.save(content, kind, **options)
    return content.getvalue()


def difference(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the mean difference of two images, as a share of the ink of the first."""
    together = np.abs(first.astype(float) - second.astype(float)).sum()
    return float(together / first.astype(float).sum())


def command(module: str, *arguments: str) -> list[str]:
    """Return a command of the project."""
    return [sys.executable, "-m", f"pipeline.{module}", *arguments]


def run_command(
    module: str, *arguments: str, cwd: Path | None = None, given: bytes = b""
) -> "subprocess.CompletedProcess[str]":
    """Run a command of the project as a user does, with something on standard input."""
    done = subprocess.run(
        command(module, *arguments), cwd=cwd, input=given, capture_output=True, timeout=180,
        env={"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "PYTHONIOENCODING": "utf-8"},
        check=False,
    )  # fmt: skip
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


class Server:
    """A server in a process of its own; `url` is where it listens."""

    def __init__(self, process: "subprocess.Popen[str]", url: str) -> None:
        self.process, self.url = process, url

    def end(self, signal_: int, within_s: float = 20) -> tuple[int, float]:
        """Send a signal; return the exit code, and how long it took to end."""
        begin = time.monotonic()
        self.process.send_signal(signal_)
        return self.process.wait(within_s), time.monotonic() - begin


@contextmanager
def serving(root: Path, *arguments: str) -> Iterator[Server]:
    """Start a server on a free port, and wait until it answers."""
    process = subprocess.Popen(
        command("serve", "--port", "0", *arguments), cwd=root, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    with process:
        try:
            assert process.stdout is not None
            assert process.stderr is not None
            line = process.stdout.readline()
            assert " at http://" in line, line + process.stderr.read()
            url = line.split()[-1]
            wait_until_ready(url)
            yield Server(process, url)
        finally:
            if process.poll() is None:
                process.kill()


def wait_until_ready(url: str, within_s: float = 30) -> None:
    """Wait until a server says that it is ready."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        try:
            if httpx.get(f"{url}/readyz").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.05)
    raise AssertionError(f"{url} is not ready after {within_s} s")


def inverted(picture: Image.Image) -> Image.Image:
    """Return a picture with light and dark exchanged."""
    return ImageOps.invert(picture)


def centre_of_mass(image: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the row and the column of the ink's centre of mass, in pixels."""
    weights = image[..., 0].astype(float)
    rows, columns = np.indices(weights.shape)
    return float((rows * weights).sum() / weights.sum()), float(
        (columns * weights).sum() / weights.sum()
    )


def box_of(image: NDArray[np.uint8], above: int = 0) -> tuple[slice, slice]:
    """Return the rows and columns in which there is ink."""
    found = image[..., 0] > above
    rows, columns = np.flatnonzero(found.any(axis=1)), np.flatnonzero(found.any(axis=0))
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def sides(box: Sequence[slice]) -> list[int]:
    """Return the height and width of a box."""
    return [each.stop - each.start for each in box]
