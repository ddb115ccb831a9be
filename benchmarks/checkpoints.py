"""What checkpoints cost: a real training on the small data set, at the default interval.

``python -m benchmarks.checkpoints VARIANT`` trains in the folder that it is called in, and prints
the seconds of each save.
"""

import json
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from benchmarks.processes import ROOT, run, stage_command
from pipeline import paths
from pipeline.checkpoint import Checkpoint, Checkpoints

DATASET = "digits"
CODE = {"PYTHONPATH": str(ROOT)}


def measure(variant: str) -> dict[str, Any]:
    """Return seconds of training and of saving, and the share of saving."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        shutil.copy(ROOT / paths.PARAMS, folder)
        for stage in ("download", "preprocess"):
            run(stage_command(stage, DATASET), folder, CODE)
        output = run([sys.executable, "-m", "benchmarks.checkpoints", variant], folder, CODE).output
        saves: list[float] = json.loads(output.splitlines()[-1])
        training = json.loads((folder / paths.training(DATASET, variant)).read_text())
    seconds = training["seconds"]
    return {
        "seconds": seconds,
        "saves": len(saves),
        "saving_seconds": round(sum(saves), 3),
        "share": round(sum(saves) / seconds, 5),
    }


def _train(variant: str) -> list[float]:
    """Train, and return the seconds of each save, the copy of the weights before it included."""
    # They load TensorFlow, which the process that waits can do without.
    from pipeline import train
    from pipeline.learner import Learner

    begins, seconds = [], []

    class TimedLearner(Learner):
        def arrays(self) -> dict[str, NDArray[Any]]:
            begins.append(time.perf_counter())
            return super().arrays()

    class TimedCheckpoints(Checkpoints):
        def save(self, checkpoint: Checkpoint) -> None:
            super().save(checkpoint)
            seconds.append(time.perf_counter() - begins[-1])

    vars(train).update(Learner=TimedLearner, Checkpoints=TimedCheckpoints)
    train.main(DATASET, variant)
    return seconds


if __name__ == "__main__":
    print(json.dumps(_train(*sys.argv[1:])))
