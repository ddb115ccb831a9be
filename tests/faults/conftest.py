"""A reproduced project that a fault may hit, and what must be the same again afterwards."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from benchmarks.processes import stage_command
from tests.conftest import environment

STAGES = ("download", "preprocess", "train", "evaluate", "footprint", "report")
DATASET, VARIANT = "tiny", "tiny_conv"
# What a stage writes that is no measurement: the same bytes each time.
RESULTS = {
    "download": ["data/raw/tiny"],
    "preprocess": ["data/prepared/tiny", "data/summary/tiny.json"],
    "train": ["models/tiny/tiny_conv", "history/tiny/tiny_conv"],
    "evaluate": ["predictions/tiny/tiny_conv.csv", "reliability/tiny/tiny_conv.csv"],
    "footprint": [],
    "report": ["reports/tiny.html", "reports/tiny.md"],
}


def command(stage: str) -> list[str]:
    """Return a stage's command, as in dvc.yaml."""
    by_variant = stage in ("train", "evaluate", "footprint")
    return stage_command(stage, DATASET, *[VARIANT] * by_variant)


def start(stage: str, root: Path) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        command(stage), cwd=root, env=own_code(root), stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def run_once(stage: str, root: Path, **more: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command(stage), cwd=root, env=own_code(root) | more, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip


def own_code(root: Path) -> dict[str, str]:
    """Return an environment in which the stages' code is the workspace's own."""
    return environment(PYTHONPATH=str(root))


def results(root: Path, *stages: str) -> dict[str, bytes]:
    """Return the bytes of what stages wrote, by path."""
    found = {}
    for stage in stages or STAGES:
        for name in RESULTS[stage]:
            path = root / name
            files = path.rglob("*") if path.is_dir() else [path]
            for file in files:
                if file.is_file() and file.name != ".gitignore":
                    found[str(file.relative_to(root))] = file.read_bytes()
    assert found or stages == ("footprint",)
    return found


def undisturbed(root: Path, stage: str) -> dict[str, bytes]:
    """Return the bytes of what a stage writes when nothing happens to it."""
    if stage == "report":  # it names the commit, and was run before there was one
        assert run_once(stage, root).returncode == 0
    return results(root, stage)


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Have a file system of its own in a folder's place."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
