"""Memory of evaluation against the size of the test set, beside the plain full-set pass.

``python -m benchmarks.evaluation_memory mnist alexnet_norm`` measures a trained variant, each case
in a process of its own, and prints a Markdown table:

- in chunks, the test set once and twenty times over;
- the plain pass, which feeds all images at once;
- both under a hard limit of the address space.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from pipeline import evaluate, model, paths
from pipeline.data import Split, SplitReader, map_split, save_split
from pipeline.memory import PeakMemory
from pipeline.metrics import Totals
from pipeline.progress import Progress

MB = 10**6
BUDGET_MB = 128
REPEATS = 20
LIMIT_MB = 700  # of address space over the loaded model: less than the plain pass needs


def measure(
    model_path: Path, test: Path, case: str, chunk_size: int, limit_mb: int
) -> dict[str, Any]:
    """Evaluate in this process, and return errors, peak memory (MB), speed and chunk size.

    Parameters
    ----------
    model_path, test : Path
        A model file, and the folder of a test split.
    case : {"chunks", "plain"}
    chunk_size : int
        0 for the one that the budget allows.
    limit_mb : int
        Address space that may be taken over the loaded model; 0 for no limit.
    """
    loaded = network, description = model.load(model_path)
    if limit_mb:
        limit = psutil.Process().memory_info().vms + limit_mb * MB
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    with SplitReader(test) as reader:
        if case == "plain":
            return _measure_plain(network, description, reader)
        chunk_size = chunk_size or evaluate.choose_chunk_size(description, BUDGET_MB)
        with (
            tempfile.TemporaryFile("w") as predictions,
            Progress("evaluate", len(reader), "images", rate_unit="images") as progress,
        ):
            measured = evaluate.summarise(
                {0: evaluate.evaluate(loaded, 0, reader, chunk_size, predictions, progress)}
            )
    return {"errors": measured["errors"], **measured["evaluation"]}


def _measure_plain(
    network: Any, description: model.Description, reader: SplitReader
) -> dict[str, Any]:
    split = reader.read(0, len(reader))
    memory = PeakMemory()
    begin = time.perf_counter()
    logits = network(split.images).numpy()
    seconds = time.perf_counter() - begin
    totals = Totals(description.classes)
    totals.add(logits, split.labels)
    return {
        "errors": totals.errors,
        "chunk_size": len(reader),
        "backoffs": 0,
        "peak_memory_mb": round(memory.peak_mb(), 1),
        "images_per_second": round(len(reader) / seconds, 1),
    }


def run_apart(*arguments: object) -> dict[str, Any] | None:
    """Call `measure` in a process of its own; None if that process failed."""
    command = [sys.executable, "-m", "benchmarks.evaluation_memory", "measure"]
    done = subprocess.run(  # noqa: S603 - this very module
        [*command, *map(str, arguments)], capture_output=True, text=True, check=False
    )
    results = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return json.loads(results[-1]) if done.returncode == 0 and results else None


def repeat_split(source: Path, target: Path, times: int) -> None:
    """Write a split that holds another one `times` over."""
    split = map_split(source)
    images, labels = (np.concatenate([array] * times) for array in split)
    save_split(target, Split(images, labels))


def main() -> None:
    """Measure the cases, or one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("arguments", nargs="+", metavar="dataset variant")
    first, *others = parser.parse_args().arguments
    if first == "measure":
        model_path, test, case, chunk_size, limit_mb = others
        print(
            json.dumps(measure(Path(model_path), Path(test), case, int(chunk_size), int(limit_mb)))
        )
        return
    dataset, variant = first, others[0]
    path = paths.model(dataset, variant, 0)
    with tempfile.TemporaryDirectory() as folder:
        repeated = Path(folder)
        once = paths.prepared(dataset, "test")
        repeat_split(once, repeated, REPEATS)
        images = len(map_split(once).labels)
        cases = [
            ("in chunks", images, (path, once, "chunks", 0, 0)),
            ("in chunks", REPEATS * images, (path, repeated, "chunks", 0, 0)),
            ("all at once", images, (path, once, "plain", 0, 0)),
            (f"in chunks, +{LIMIT_MB} MB limit", images, (path, once, "chunks", 0, LIMIT_MB)),
            (f"all at once, +{LIMIT_MB} MB limit", images, (path, once, "plain", 0, LIMIT_MB)),
        ]
        print(f"| {variant} | images | chunk | memory over the model | images/s | errors |")
        print("| --- | ---: | ---: | ---: | ---: | ---: |")
        for name, count, arguments in cases:
            result = run_apart(*arguments)
            figures = (
                f"{result['chunk_size']:,} | {result['peak_memory_mb']:,.0f} MB | "
                f"{result['images_per_second']:,.0f} | {result['errors']:,}"
                if result
                else "– | out of memory | – | –"
            )
            print(f"| {name} | {count:,} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
