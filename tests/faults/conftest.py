"""A reproduced project that faults may hit, and the results that must be the same afterwards."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers import environment, stage_command

STAGES = ("download", "preprocess", "train", "evaluate", "profile", "report")
DATASET, VARIANT = "tiny", "tiny_conv"
FOLDER = "results/tiny/tiny_conv"
# The results that have the same bytes each time: all but measurements.
RESULTS = {
    "download": ["data/raw/tiny"],
    "preprocess": ["data/prepared/tiny", "results/tiny/summary.json"],
    "train": [
        "models/tiny/tiny_conv",
        *(
            f"{FOLDER}/{name}"
            for name in ("training.json", "curve_train.csv", "curve_validation.csv")
        ),
    ],
    "evaluate": [
        "predictions/tiny/tiny_conv.csv",
        *(f"{FOLDER}/{name}" for name in ("metrics.json", "mistakes.csv", "calibration.csv")),
    ],
    "profile": [],
    "report": ["reports/tiny.html", "reports/tiny.md"],
}


def command(stage: str) -> list[str]:
    """Return a stage's command, as in dvc.yaml."""
    by_variant = stage in ("train", "evaluate", "profile")
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
    """Return an environment in which the stages run the workspace's own code."""
    return environment(PYTHONPATH=str(root))


def results(root: Path, *stages: str) -> dict[str, bytes]:
    """Return the bytes of the results of some stages, by path."""
    found = {}
    for stage in stages or STAGES:
        for name in RESULTS[stage]:
            path = root / name
            files = path.rglob("*") if path.is_dir() else [path]
            for file in files:
                if file.is_file() and file.name != ".gitignore":
                    found[str(file.relative_to(root))] = file.read_bytes()
    assert found or stages == ("profile",)
    return found


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[None]:
    """Mount another file system in the place of a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    mount = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", folder], check=True)
