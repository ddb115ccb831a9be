"""Run commands in processes of their own; measure their time and peak memory."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.network.chunks import MB

ROOT = Path(__file__).parent.parent
WATCH = Path(__file__).parent / "watch.py"
THIS_CODE = {"PYTHONPATH": str(ROOT)}


class Usage(NamedTuple):
    """Wall-clock time, peak resident memory and output of a process."""

    seconds: float
    peak_memory_mb: float
    output: str


def stage_command(stage: str, dataset: str = "", variant: str = "") -> list[str]:
    """Return the command of a stage, as in dvc.yaml."""
    by_dataset = ["--dataset", dataset] if dataset else []
    by_variant = ["--variant", variant] if variant else []
    return [sys.executable, "-m", f"pipeline.{stage}", *by_dataset, *by_variant]


def run(
    command: Sequence[str], folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> Usage:
    """Run a command to its end, and return what it used.

    Raises
    ------
    RuntimeError
        If the command fails; the message has its output.
    """
    done = subprocess.run(  # noqa: S603 - callers give fixed commands
        [sys.executable, "-I", "-S", str(WATCH), *command], cwd=folder, check=True, text=True,
        env=os.environ | dict(environment or {}), stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, seconds, peak_bytes = json.loads(last)
    if code:
        raise RuntimeError(f"{' '.join(command)} exited with {code}:\n{output}")
    return Usage(seconds, peak_bytes / MB, output)


def run_module(module: str, *arguments: str, folder: Path = ROOT) -> Any:
    """Run a benchmark module in a process of its own, and return the JSON that it prints last."""
    output = run([sys.executable, "-m", module, *arguments], folder, THIS_CODE).output
    return json.loads(output.splitlines()[-1])
