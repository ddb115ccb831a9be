"""Run a command, and tell how long it took and how much memory it held."""

import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from pipeline.memory import MB

ROOT = Path(__file__).parent.parent


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
    begin = time.perf_counter()
    with subprocess.Popen(  # noqa: S603 - callers give fixed commands
        command,
        cwd=folder,
        env=os.environ | dict(environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        output = process.stdout.read() if process.stdout else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    seconds = time.perf_counter() - begin
    if process.returncode:
        raise RuntimeError(f"{' '.join(command)} ended with {process.returncode}:\n{output}")
    return Usage(seconds, usage.ru_maxrss * 1024 / MB, output)
