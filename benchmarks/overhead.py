"""The cost of start-up and orchestration: importing a stage, ``dvc repro``, the flow."""

import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from benchmarks.machine import spread
from benchmarks.processes import ROOT, run, stage_command
from dvc_flow.params import set_params

STAGES = ("download", "preprocess", "train", "evaluate", "profile", "report", "compare")
DATASET, VARIANT = "digits", "lenet5"
# The graph of one variant on the small data set.
BARE = (
    ("download", DATASET), ("preprocess", DATASET), ("train", DATASET, VARIANT),
    ("evaluate", DATASET, VARIANT), ("profile", DATASET, VARIANT), ("report", DATASET),
)  # fmt: skip


def measure(rounds: int) -> dict[str, Any]:
    """Return the seconds of start-up, and of orchestration in half as many rounds."""
    return {"start_up": start_up(rounds), "orchestration": orchestration(max(1, rounds // 2))}


def start_up(rounds: int) -> dict[str, Any]:
    """Return the seconds of a process that imports a stage, for each stage."""
    seconds: dict[str, list[float]] = defaultdict(list)
    for number in range(rounds + 1):
        for stage in STAGES:
            usage = run([sys.executable, "-c", f"import pipeline.{stage}"])
            if number:  # the first round fills the file cache
                seconds[stage].append(usage.seconds)
    return {stage: spread(values) for stage, values in seconds.items()}


def orchestration(rounds: int) -> dict[str, Any]:
    """Return the seconds of a variant's graph: bare, by DVC, by the flow; in full and again."""
    ways = {
        "bare stages": [stage_command(*names) for names in BARE],
        "dvc repro": [["dvc", "repro", "-q", f"report@{DATASET}"]],
        "flow": [["dvc-flow", f"report@{DATASET}"]],
    }
    seconds: dict[str, list[float]] = defaultdict(list)
    for _ in range(rounds):
        for way, commands in ways.items():
            with tempfile.TemporaryDirectory() as name:
                project = _fresh_project(Path(name))
                for kind in ("in full", "again"):
                    if (way, kind) != ("bare stages", "again"):  # they would do it all again
                        took = sum(run(command, project).seconds for command in commands)
                        seconds[f"{way}, {kind}"].append(took)
    return {name: spread(values) for name, values in seconds.items()}


def _fresh_project(folder: Path) -> Path:
    """Clone the last commit without cache and results, limited to one variant and data set."""
    project = folder / "project"
    clone = ["git", "clone", "-q", str(ROOT), str(project)]
    subprocess.run(clone, check=True)  # noqa: S603 - fixed command
    wanted = [f"run.datasets=[{DATASET}]", f"run.variants=[{VARIANT}]"]
    set_params(project, wanted, None, {})
    (project / "dvc.lock").unlink()
    for results in ("results", "reports"):
        shutil.rmtree(project / results)
    return project
