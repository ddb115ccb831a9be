"""``python -m benchmarks [PART …]`` measures, and writes results.json and docs/performance.md.

A part that is not measured keeps the figures that it has, and so does another machine.
"""

import argparse
import datetime
import json
from collections.abc import Callable, Sequence
from typing import Any

from benchmarks import (
    checkpoints,
    chunks,
    kernels,
    levers,
    machine,
    overhead,
    scale,
    tables,
    throughput,
)
from benchmarks.processes import ROOT
from pipeline.device import find_device
from pipeline.files import write_json

RESULTS = ROOT / "benchmarks/results.json"
PAGE = ROOT / "docs/performance.md"
VARIANTS = ("alexnet_norm", "alexnet_dropout", "lenet5")


def measure_throughput(flags: argparse.Namespace) -> dict[str, Any]:
    """Let all contenders take turns with each variant."""
    entries: tuple[throughput.Entry, ...] = throughput.ENTRIES
    if find_device().has_bfloat16:
        entries += throughput.BFLOAT16_ENTRIES
    return _in_turns(lambda _: entries, throughput.TASKS, flags.rounds)


def measure_levers(flags: argparse.Namespace) -> dict[str, Any]:
    """Let this project train with each measure for speed taken away."""
    return _in_turns(levers.entries, ("train",), flags.rounds)


def measure_kernels(_: argparse.Namespace) -> dict[str, Any]:
    """Profile this project's training and inference."""
    return {
        variant: {task: kernels.measure(variant, task) for task in throughput.TASKS}
        for variant in VARIANTS
    }


def _in_turns(
    entries: Callable[[str], Sequence[throughput.Entry]], tasks: Sequence[str], rounds: int
) -> dict[str, Any]:
    figures: dict[str, Any] = {}
    for variant in VARIANTS:
        for task in tasks:
            measured = throughput.measure(variant, task, entries(variant), rounds)
            figures.setdefault(variant, {})[task] = {
                "operations_per_image": throughput.count_operations(
                    throughput.read_variant(variant)[1].place_layers(), task
                ),
                "contenders": {
                    name: {
                        "images_per_second": each.images_per_second._asdict(),
                        "gigaflops": each.gigaflops._asdict(),
                        "versions": each.versions,
                    }
                    for name, each in measured.items()
                },
            }
    return figures


def measure_chunks(flags: argparse.Namespace) -> dict[str, Any]:
    """Sweep over the sizes of chunks and of test sets."""
    figures: dict[str, Any] = {}
    for variant in VARIANTS:
        rows = figures[variant] = {"by_chunk": [], "by_images": []}
        for kind, measured in (
            ("by_chunk", chunks.sweep(variant)),
            ("by_images", chunks.grow(variant, flags.patience)),
        ):
            for row in measured:
                print(variant, row, flush=True)
                rows[kind].append(row)
    return figures


def measure_scale(_: argparse.Namespace) -> list[dict[str, Any]]:
    """Run the stages on sets of growing size."""
    rows = []
    for images in chunks.SET_SIZES:
        for row in scale.measure(images):
            print(row, flush=True)
            rows.append(row)
    return rows


def measure_overhead(flags: argparse.Namespace) -> dict[str, Any]:
    """Time start-up and orchestration."""
    return {
        "start_up": overhead.start_up(flags.rounds),
        "orchestration": overhead.orchestration(max(1, flags.rounds // 2)),
    }


def measure_checkpoints(_: argparse.Namespace) -> dict[str, Any]:
    """Train on the small data set, and time what is saved."""
    return {variant: checkpoints.measure(variant) for variant in VARIANTS}


PARTS: dict[str, Callable[[argparse.Namespace], Any]] = {
    "throughput": measure_throughput,
    "levers": measure_levers,
    "kernels": measure_kernels,
    "chunks": measure_chunks,
    "scale": measure_scale,
    "overhead": measure_overhead,
    "checkpoints": measure_checkpoints,
}


def main() -> None:
    """Measure the parts asked for, one after another, and write what they gave."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--rounds", type=int, default=5, help="repeats of each measurement")
    parser.add_argument(
        "--patience", type=float, default=300, help="seconds that one evaluation may take"
    )
    flags = parser.parse_args()
    if unknown := set(flags.parts) - set(PARTS):
        parser.error(f"unknown part {min(unknown)!r}; expected {', '.join(PARTS)}")
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    for part in flags.parts or PARTS:
        measurement = {
            "machine": machine.describe(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "figures": PARTS[part](flags),
        }
        results[part] = machine.replace(results.get(part, []), measurement)
        write_json(RESULTS, results)
    tables.update(PAGE, results)


if __name__ == "__main__":
    main()
