"""What start-up and orchestration add: importing a stage, ``dvc repro``, the flow."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.machine import spread
from benchmarks.processes import ROOT, run, stage_command
from flows.params import set_params

STAGES = ("download", "preprocess", "train", "evaluate", "footprint", "report", "compare")
DATASET, VARIANT = "digits", "lenet5"
# The graph of one variant of the small data set.
BARE = (
    ("download", DATASET),
    ("preprocess", DATASET),
    ("train", DATASET, VARIANT),
    ("evaluate", DATASET, VARIANT),
    ("footprint", DATASET, VARIANT),
    ("report", DATASET),
)


def start_up(rounds: int) -> dict[str, Any]:
    """Return the seconds that a process takes to import each stage and to end."""
    times: dict[str, list[float]] = {stage: [] for stage in STAGES}
    for number in range(rounds + 1):
        for stage in STAGES:
            usage = run([sys.executable, "-c", f"import pipeline.{stage}"])
            if number:  # the first round fills the file cache
                times[stage].append(usage.seconds)
    return {stage: spread(values)._asdict() for stage, values in times.items()}


def orchestration(rounds: int) -> dict[str, Any]:
    """Return the seconds of one variant's graph: bare, by DVC, by the flow; in full and again."""
    ways = {
        "bare stages": [stage_command(*names) for names in BARE],
        "dvc repro": [["dvc", "repro", "-q", f"report@{DATASET}"]],
        "flow": [[sys.executable, "-m", "flows.reproduce", f"report@{DATASET}"]],
    }
    times: dict[str, list[float]] = {}
    for _ in range(rounds):
        for way, commands in ways.items():
            with tempfile.TemporaryDirectory() as name:
                project = _fresh_project(Path(name))
                for kind in ("in full", "again"):
                    if way == "bare stages" and kind == "again":
                        continue  # they know no "again"
                    seconds = sum(run(each, project).seconds for each in commands)
                    times.setdefault(f"{way}, {kind}", []).append(seconds)
    return {name: spread(values)._asdict() for name, values in times.items()}


def _fresh_project(folder: Path) -> Path:
    """Clone the project with an empty cache and no results, set to one variant of one data set."""
    project = folder / "project"
    clone = ["git", "clone", "-q", str(ROOT), str(project)]
    subprocess.run(clone, check=True)  # noqa: S603 - fixed command
    set_params(project, [f"run.datasets=[{DATASET}]", f"run.variants=[{VARIANT}]"])
    (project / "dvc.lock").unlink()
    for results in ("metrics", "history", "training", "footprint", "reliability", "reports"):
        shutil.rmtree(project / results)
    return project
