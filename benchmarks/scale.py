"""What each stage takes for an image, from ten thousand images to a million.

Real stages, run one after another on images of noise, each with a white bar that tells its class,
so that a short training learns them.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ruamel.yaml import YAML

from benchmarks.processes import ROOT, run, stage_command
from pipeline import idx

STAGES = ("preprocess", "train", "evaluate", "footprint", "report")
MEASURED = ("preprocess", "evaluate", "report")
VARIANT = "lenet5"


def write_project(folder: Path, images: int) -> None:
    """Write settings, and raw files of so many images for training and for the test."""
    yaml = YAML()
    params = yaml.load(ROOT / "params.yaml")
    digits = params["datasets"]["digits"]
    digits["preprocess"]["validation_size"] = images // 10
    digits["train"] = {"samples": 6400, "epochs": None}
    params["variants"][VARIANT]["budget"] = {"samples": 6400}
    params["run"] = {"datasets": ["digits"], "variants": [VARIANT]}
    yaml.dump(params, folder / "params.yaml")
    random = np.random.default_rng(0)
    for part in ("train", "test"):
        raw = folder / "data/raw/digits"
        pixels = random.integers(0, 256, (images, 28, 28), dtype=np.uint8)
        labels = random.integers(0, 10, images, dtype=np.uint8)
        pixels[np.arange(images), 2 * labels] = 255
        idx.write(raw / f"{part}_images", pixels)
        idx.write(raw / f"{part}_labels", labels)


def measure(images: int) -> Iterator[dict[str, Any]]:
    """Yield a row for each stage: seconds and peak memory (MB) of its whole process."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_project(folder, images)
        for stage in STAGES:
            variant = "" if stage in ("preprocess", "report") else VARIANT
            command = stage_command(stage, "digits", variant)
            usage = run(command, folder, {"PYTHONPATH": str(ROOT)})
            if stage in MEASURED:
                yield {
                    "images": images * (2 if stage == "preprocess" else 1),
                    "stage": stage,
                    "seconds": round(usage.seconds, 2),
                    "peak_memory_mb": round(usage.peak_memory_mb),
                }
