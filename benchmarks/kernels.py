"""Where this project's time goes: the share of each kind of kernel in training and in inference.

``python -m benchmarks.kernels VARIANT TASK`` prints the milliseconds of each kind, by TensorFlow's
profiler, in a process of its own.
"""

import pipeline  # noqa: F401 - before TensorFlow, which reads its settings

# isort: split
import json
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from benchmarks.ours import make
from benchmarks.processes import run
from benchmarks.throughput import request_for

HOST = "/host:CPU"
PIECES = 10  # training steps, or chunks


def measure(variant: str, task: str) -> dict[str, float]:
    """Return the share of each kind of kernel in the time of all, the largest first."""
    output = run([sys.executable, "-m", "benchmarks.kernels", variant, task]).output
    milliseconds: dict[str, float] = json.loads(output.splitlines()[-1])
    whole = sum(milliseconds.values())
    return {kind: round(each / whole, 4) for kind, each in milliseconds.items()}


def _profile(variant: str, task: str) -> dict[str, float]:
    contender = make(request_for(variant, task)[0], "auto")
    contender.work(2)  # compiles
    with tempfile.TemporaryDirectory() as folder:
        with tf.profiler.experimental.Profile(folder):
            contender.work(PIECES)
        milliseconds: dict[str, float] = defaultdict(float)
        for path in Path(folder).rglob("*.xplane.pb"):
            for name, duration in _events(path):
                # Kernels are called node:Kind; a node's name has no blank, other events' may.
                node, colon, kind = name.rpartition(":")
                if colon and node and " " not in name and not node.endswith(":"):
                    milliseconds[kind] += duration
    return dict(sorted(milliseconds.items(), key=lambda item: -item[1]))


def _events(path: Path) -> Iterator[tuple[str, float]]:
    """Yield the name and the milliseconds of what the processor did."""
    space = xplane_pb2.XSpace.FromString(path.read_bytes())
    for plane in space.planes:
        if plane.name == HOST:
            for line in plane.lines:
                for event in line.events:
                    yield plane.event_metadata[event.metadata_id].name, event.duration_ps / 1e9


if __name__ == "__main__":
    print(json.dumps(_profile(*sys.argv[1:])))
