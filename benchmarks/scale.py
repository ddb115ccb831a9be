"""Time and memory of whole stages, from ten thousand images to a million.

The images are noise with a white bar that gives away the class, so that a short training learns it.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks.processes import ROOT, THIS_CODE, run, stage_command
from pipeline.core import paths
from pipeline.datasets import idx

STAGES = ("preprocess", "train", "evaluate", "profile", "report")
MEASURED = ("preprocess", "evaluate", "report")
DATASET, VARIANT = "digits", "lenet5"


def write_project(folder: Path, images: int) -> None:
    """Write params, and raw files of that many images for training and for the test."""
    yaml = YAML()
    params = yaml.load(ROOT / paths.PARAMS)
    digits = params["datasets"][DATASET]
    digits["preprocess"]["validation_size"] = images // 10
    digits["train"] = {"samples": 6400, "epochs": None}
    params["variants"][VARIANT]["budget"] = {"samples": 6400}
    params["profile"].update(chunk_sizes=[1], training_steps=1)  # the report needs its figures
    params["run"] = {"datasets": [DATASET], "variants": [VARIANT], "ensembles": []}
    yaml.dump(params, folder / paths.PARAMS)
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        raw = folder / paths.raw(DATASET)
        pixels = random.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, images, dtype=np.uint8)
        pixels[np.arange(images), 2 * labels] = 255
        idx.write(raw / f"{part}_images", pixels)
        idx.write(raw / f"{part}_labels", labels)


def measure(images: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each measured stage: seconds and peak memory of its process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder, images)
        for stage in STAGES:
            variant = "" if stage in ("preprocess", "report") else VARIANT
            usage = run(stage_command(stage, DATASET, variant), folder, THIS_CODE)
            if stage in MEASURED:
                row = {
                    "images": images * (2 if stage == "preprocess" else 1),
                    "stage": stage,
                    "seconds": round(usage.seconds, 2),
                    "peak_memory_mb": round(usage.peak_memory_mb),
                }
                print(row, flush=True)
                yield row
