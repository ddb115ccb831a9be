"""The share of each kind of kernel in training and inference time, by TensorFlow's profiler.

``python -m benchmarks.kernels VARIANT TASK`` prints the milliseconds of each kind.
"""

import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks.ours import make
from benchmarks.processes import run_module
from benchmarks.throughput import request_for
from pipeline.network.framework import tf

HOST = "/host:CPU"
PIECES = 10  # training steps, or chunks


def measure(variant: str, task: str) -> dict[str, float]:
    """Return the share of each kind of kernel in the time of all, the largest first."""
    milliseconds: dict[str, float] = run_module("benchmarks.kernels", variant, task)
    total = sum(milliseconds.values())
    return {kind: round(each / total, 4) for kind, each in milliseconds.items()}


def _profile(variant: str, task: str) -> dict[str, float]:
    contender = make(request_for(variant, task)[0], "auto")
    contender.work(2)  # compiles
    milliseconds: dict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            contender.work(PIECES)
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, duration in _events(path):
                # Kernels are called node:Kind. Node names have no spaces; other events' may.
                node, colon, kind = name.rpartition(":")
                if colon and node and " " not in name and not node.endswith(":"):
                    milliseconds[kind] += duration
    return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))


def _events(path: Path) -> Iterator[tuple[str, float]]:
    """Yield the names and milliseconds of the events on the CPU."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    for plane in space.planes:
        if plane.name == HOST:
            for line in plane.lines:
                for event in line.events:
                    yield plane.event_metadata[event.metadata_id].name, event.duration_ps / 1e9


if __name__ == "__main__":
    print(json.dumps(_profile(*sys.argv[1:])))
