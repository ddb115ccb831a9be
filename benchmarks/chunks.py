"""Evaluation's speed and memory against the size of its chunks, and against the test set's.

Weights do not matter to either, and the images are random bytes.
"""

import json
import resource
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from benchmarks.processes import run
from benchmarks.throughput import CLASSES, IMAGE_SHAPE, read_variant
from pipeline import evaluate, model
from pipeline.data import Split, SplitReader, split_writer
from pipeline.device import find_device
from pipeline.memory import MB
from pipeline.metrics import Totals
from pipeline.params import Params
from pipeline.progress import Progress

CHUNK_SIZES = (8, 32, 64, 128, 256, 512, 1024, 4096)
SWEEP_IMAGES = {"alexnet_norm": 4_096, "alexnet_dropout": 8_192, "lenet5": 65_536}
SET_SIZES = (10_000, 100_000, 1_000_000)
BLOCK = 10_000


def write_random_split(folder: Path, images: int) -> None:
    """Write a split of random images, a block at a time."""
    random = np.random.default_rng(0)
    with split_writer(folder, images, IMAGE_SHAPE) as write:
        for start in range(0, images, BLOCK):
            count = min(BLOCK, images - start)
            write(
                Split(
                    random.integers(0, 256, (count, *IMAGE_SHAPE), dtype=np.uint8),
                    random.integers(0, CLASSES, count, dtype=np.uint8),
                )
            )


def measure_apart(
    variant: str, test: Path, chunk_size: int = 0, *, limit_mb: int = 0, plain: bool = False
) -> dict[str, Any]:
    """Evaluate in a process of its own, with no weights trained.

    Parameters
    ----------
    variant : str
    test : Path
        The folder of a test split.
    chunk_size : int
        0 for the pipeline's own choice.
    limit_mb : int
        Address space that may be taken over the loaded model; 0 for no limit.
    plain : bool
        Whether to call the network with all images at once instead.

    Raises
    ------
    RuntimeError
        If that process failed.
    """
    request = json.dumps([variant, str(test), chunk_size, limit_mb, plain])
    output = run([sys.executable, "-m", "benchmarks.chunks", request]).output
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def sweep(variant: str) -> Iterator[dict[str, Any]]:
    """Yield a row for each size of chunk, the pipeline's own choice last."""
    with tempfile.TemporaryDirectory() as folder:
        write_random_split(Path(folder), SWEEP_IMAGES[variant])
        for chunk_size in (*CHUNK_SIZES, 0):
            yield measure_apart(variant, Path(folder), chunk_size) | {"chosen": not chunk_size}


def grow(variant: str, patience: float) -> Iterator[dict[str, Any]]:
    """Yield a row for each size of the test set that takes at most `patience` seconds."""
    speed = float("inf")
    for images in SET_SIZES:
        if images / speed > patience:
            return
        with tempfile.TemporaryDirectory() as folder:
            write_random_split(Path(folder), images)
            row = measure_apart(variant, Path(folder), 0)
        speed = row["images_per_second"]
        yield row


def _measure(
    variant: str, test: Path, chunk_size: int, limit_mb: int, plain: bool
) -> dict[str, Any]:
    _, description = read_variant(variant)
    settings: evaluate.Evaluate = Params().get("evaluate", evaluate.Evaluate)
    precision = find_device().precision(settings.precision)
    loaded = model.build_for_inference(description, precision)
    chosen = chunk_size or evaluate.choose_chunk_size(loaded, settings.memory_budget_mb)
    if limit_mb:
        limit = psutil.Process().memory_info().vms + int(limit_mb * MB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with (
        SplitReader(test) as reader,
        tempfile.TemporaryFile("w") as predictions,
        tempfile.TemporaryFile("w") as mistakes,
        Progress("evaluate", len(reader), "images", rate_unit="images") as progress,
    ):
        if plain:
            images, labels = reader.read(0, len(reader))
            totals = Totals(CLASSES)
            totals.add(loaded.network(images).numpy(), labels)
            return {"errors": totals.errors}
        evaluated = evaluate.evaluate(loaded, 0, reader, chosen, predictions, mistakes, progress)
    totals = evaluated.totals
    figures: dict[str, Any] = evaluate.summarise({0: evaluated}, precision)["evaluation"]
    return {"images": totals.n, "errors": totals.errors} | figures


if __name__ == "__main__":
    name, folder, *how = json.loads(sys.argv[1])
    print(json.dumps(_measure(name, Path(folder), *how)))
