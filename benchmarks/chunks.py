"""Speed and memory of evaluation by chunk size and by test-set size.

The weights affect neither, so nothing is trained; the images are random bytes.
"""

import json
import resource
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import psutil

from benchmarks.processes import run_module
from benchmarks.throughput import CLASSES, IMAGE_SHAPE, read_variant
from pipeline import evaluate
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.datasets.splits import Split, SplitReader, split_writer
from pipeline.network.build import build_for_inference
from pipeline.network.chunks import MB, Evaluate
from pipeline.network.device import find_device
from pipeline.network.inference import ChunkedForward, choose_chunk_size
from pipeline.network.memory import PeakMemory
from pipeline.scores.metrics import Totals
from pipeline.scores.tables import PredictionTables

CHUNK_SIZES = (8, 32, 64, 128, 256, 512, 1024, 4096)
SWEEP_IMAGES = {"alexnet_norm": 4_096, "alexnet_dropout": 8_192, "lenet5": 65_536}
SET_SIZES = (10_000, 100_000, 1_000_000)
BLOCK = 10_000


def write_random_split(folder: Path, images: int) -> None:
    """Write a split of random images, block by block."""
    random = np.random.default_rng(0)
    with split_writer(folder, images, IMAGE_SHAPE) as write:
        for start in range(0, images, BLOCK):
            count = min(BLOCK, images - start)
            pixels = random.integers(0, 256, (count, *IMAGE_SHAPE), dtype=np.uint8)
            write(Split(pixels, random.integers(0, CLASSES, count, dtype=np.uint8)))


def measure_apart(
    variant: str, test: Path, chunk_size: int = 0, *, limit_mb: int = 0, plain: bool = False
) -> dict[str, Any]:
    """Return the speed, memory and errors of an evaluation in a process of its own.

    Parameters
    ----------
    variant, test
        Evaluated with its initial weights, on the split in this folder.
    chunk_size : int
        0 for the one that the pipeline chooses.
    limit_mb : int
        Address space allowed on top of the loaded model; 0 for no limit.
    plain : bool
        Pass all images to the network at once instead, and return the errors alone.
    """
    request = json.dumps([variant, str(test), chunk_size, limit_mb, plain])
    result: dict[str, Any] = run_module("benchmarks.chunks", request)
    print(variant, result, flush=True)
    return result


def measure(variant: str, patience: float) -> dict[str, list[dict[str, Any]]]:
    """Return a row for each chunk size, and for each test set that takes no more seconds."""
    by_images: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_random_split(folder, SWEEP_IMAGES[variant])
        sizes = (*CHUNK_SIZES, 0)
        by_chunk = [measure_apart(variant, folder, size) | {"chosen": not size} for size in sizes]
        for images in SET_SIZES:
            if by_images and images / by_images[-1]["images_per_second"] > patience:
                break
            write_random_split(folder, images)
            by_images.append(measure_apart(variant, folder))
    return {"by_chunk": by_chunk, "by_images": by_images}


def _measure(variant: str, test: Path, size: int, limit_mb: int, plain: bool) -> dict[str, Any]:
    settings: Evaluate = Params().get("evaluate", Evaluate)
    precision = find_device().precision(settings.precision)
    loaded = build_for_inference(read_variant(variant)[1], precision)
    if limit_mb:
        limit = psutil.Process().memory_info().vms + int(limit_mb * MB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    ready: list[tuple[ChunkedForward, float]] = []

    class TimedForward(ChunkedForward):
        def warm_up(self) -> None:
            super().warm_up()
            ready.append((self, time.perf_counter()))

    with (
        SplitReader(test) as reader,
        tempfile.TemporaryDirectory() as folder,
        PredictionTables(Path(folder) / "predictions", Path(folder) / "mistakes") as tables,
        Progress("evaluate", len(reader), "images", rate_unit="images") as progress,
        patch.object(evaluate, "ChunkedForward", TimedForward),
    ):
        if plain:
            images, labels = reader.read(0, len(reader))
            totals = Totals(CLASSES)
            totals.add(loaded.network(images).numpy(), labels)
            return {"errors": totals.errors}
        memory = PeakMemory()
        size = size or choose_chunk_size(loaded, settings, len(reader))
        totals = evaluate.evaluate(loaded, 0, reader, size, tables, progress)
        [(forward, begin)] = ready
        seconds = time.perf_counter() - begin
    return {
        "images": totals.n,
        "errors": totals.errors,
        "precision": precision,
        "chunk_size": forward.chunk_size,
        "backoffs": forward.backoffs,
        "peak_memory_mb": round(memory.peak_mb(), 1),
        "images_per_second": round(totals.n / seconds, 1),
    }


if __name__ == "__main__":
    name, folder, *how = json.loads(sys.argv[1])
    print(json.dumps(_measure(name, Path(folder), *how)))
