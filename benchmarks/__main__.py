"""``python -m benchmarks [PART …]`` measures, and writes results.json and docs/benchmarks.md.

Parts that are not measured, and other machines, keep their figures.
"""

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import (
    checkpoints,
    chunks,
    graphs,
    kernels,
    levers,
    machine,
    overhead,
    scale,
    tables,
    throughput,
)
from benchmarks.processes import ROOT
from pipeline.core.files import write_json, write_text

RESULTS = ROOT / "benchmarks/results.json"
PAGE = ROOT / "docs/benchmarks.md"
VARIANTS = ("alexnet_norm", "alexnet_dropout", "lenet5")
Entries = Callable[[str], Sequence[throughput.Entry]]


def _each_variant(measure: Callable[[str], Any]) -> dict[str, Any]:
    return {variant: measure(variant) for variant in VARIANTS}


def _compare(entries: Entries, tasks: Sequence[str], rounds: int) -> dict[str, Any]:
    return _each_variant(
        lambda variant: {
            task: throughput.measure(variant, task, entries(variant), rounds) for task in tasks
        }
    )


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "throughput": lambda flags: _compare(throughput.entries, throughput.TASKS, flags.rounds),
    "levers": lambda flags: _compare(levers.entries, ("train",), flags.rounds),
    "kernels": lambda _: _each_variant(
        lambda variant: {task: kernels.measure(variant, task) for task in throughput.TASKS}
    ),
    "chunks": lambda flags: _each_variant(lambda variant: chunks.measure(variant, flags.patience)),
    "scale": lambda _: [row for images in chunks.SET_SIZES for row in scale.measure(images)],
    "overhead": lambda flags: overhead.measure(flags.rounds),
    "graphs": lambda flags: graphs.measure(flags.rounds),
    "checkpoints": lambda _: _each_variant(checkpoints.measure),
}


def main() -> None:
    """Measure the requested parts, and write their results and tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of each measurement")
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds that one evaluation may take"
    )
    parser.add_argument("--tables", action="store_true", help="only rewrite docs/benchmarks.md")
    flags = parser.parse_args()
    if unknown := set(flags.parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; expected {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in () if flags.tables else flags.parts or PARTS:
        measurement = {
            "machine": machine.describe(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "figures": PARTS[part](flags),
        }
        results[part] = machine.replace(results.get(part, []), measurement)
        write_json(RESULTS, results)
    write_text(PAGE, tables.page(results))


if __name__ == "__main__":
    main()
