"""The cost of checkpoints: a real training on the small data set, at the default interval.

``python -m benchmarks.checkpoints VARIANT`` trains in the current folder.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

from numpy.typing import NDArray

from benchmarks.processes import ROOT, THIS_CODE, run, run_module, stage_command
from pipeline.core import paths
from pipeline.training.checkpoint import Checkpoint, Checkpoints

DATASET = "digits"


def measure(variant: str) -> dict[str, Any]:
    """Return the seconds of the training loop, and the share that checkpoints take."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / paths.PARAMS, folder)
        for stage in ("download", "preprocess"):
            run(stage_command(stage, DATASET), folder, THIS_CODE)
        figures: dict[str, Any] = run_module("benchmarks.checkpoints", variant, folder=folder)
    return figures


def _train(variant: str) -> dict[str, Any]:
    # These load TensorFlow, which `measure` does not need.
    from pipeline import train
    from pipeline.training.learner import Learner

    begins: list[float] = []  # of the training, then of each save with its copy of the weights
    ends: list[float] = []  # of each save; the training ends with the last

    class TimedLearner(Learner):
        def __init__(self, *arguments: Any) -> None:
            begins.append(time.perf_counter())
            super().__init__(*arguments)

        def arrays(self) -> dict[str, NDArray[Any]]:
            begins.append(time.perf_counter())
            return super().arrays()

    class TimedCheckpoints(Checkpoints):
        def save(self, checkpoint: Checkpoint) -> None:
            super().save(checkpoint)
            ends.append(time.perf_counter())

    with (
        patch.object(train, "Learner", TimedLearner),
        patch.object(train, "Checkpoints", TimedCheckpoints),
    ):
        train.main(DATASET, variant)
    seconds, saving = ends[-1] - begins[0], sum(ends) - sum(begins[1:])
    return {
        "seconds": round(seconds, 1),
        "saves": len(ends),
        "saving_seconds": round(saving, 3),
        "share": round(saving / seconds, 5),
    }


if __name__ == "__main__":
    print(json.dumps(_train(*sys.argv[1:])))
