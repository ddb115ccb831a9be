"""Run a command, and tell how long it took and how much memory it held."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.memory import MB

ROOT = Path(__file__).parent.parent
WATCH = Path(__file__).parent / "watch.py"


class Usage(NamedTuple):
    """Wall-clock seconds from start to end, and the most memory that was resident."""

    seconds: float
    peak_memory_mb: float
    output: str


def stage_command(stage: str, dataset: str = "", variant: str = "") -> list[str]:
    """Return the command of a stage, as dvc.yaml has it."""
    by_dataset = ["--dataset", dataset] if dataset else []
    by_variant = ["--variant", variant] if variant else []
    return [sys.executable, "-m", f"pipeline.{stage}", *by_dataset, *by_variant]


def run(
    command: Sequence[str], folder: Path = ROOT, environment: Mapping[str, str] | None = None
) -> Usage:
    """Run a command to its end.

    Raises
    ------
    RuntimeError
        If it fails, with what it wrote.
    """
    done = subprocess.run(  # noqa: S603 - callers give fixed commands
        [sys.executable, "-I", "-S", str(WATCH), *command],
        cwd=folder,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=True,
    )
    output, _, last = done.stdout.rstrip("\n").rpartition("\n")
    code, seconds, peak_bytes = json.loads(last)
    if code:
        raise RuntimeError(f"{' '.join(command)} ended with {code}:\n{output}")
    return Usage(seconds, peak_bytes / MB, output)
