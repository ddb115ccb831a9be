"""Images per second in training and inference: this project, plain Keras and PyTorch."""

import json
import os
import subprocess
import sys
from collections import defaultdict, deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from benchmarks.machine import spread
from pipeline.core.params import Params
from pipeline.network.build import Description
from pipeline.network.device import find_device
from pipeline.network.layers import Conv, Dense, PlacedLayer, Shape
from pipeline.training.recipe import Variant

IMAGE_SHAPE = Shape(28, 28, 1)
CLASSES = 10
TASKS = ("train", "infer")
WORK_SECONDS = 3.0
MULTIPLY_SECONDS = 1.0


class Entry(NamedTuple):
    """A contender's name, its command, and the environment variables to set."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = MappingProxyType({})


def _python(module: str, *flags: str, python: str = sys.executable) -> list[str]:
    return [python, "-m", f"benchmarks.{module}", *flags]


def _pytorch(*flags: str) -> list[str]:
    return _python("pytorch", *flags, python=".venv-bench/bin/python")


ENTRIES = (
    Entry("this project", _python("ours", "auto")),
    Entry("Keras", _python("plain_keras")),
    Entry("Keras, oneDNN on", _python("plain_keras"), {"TF_ENABLE_ONEDNN_OPTS": "1"}),
    Entry("PyTorch", _pytorch()),
    Entry("PyTorch, compiled", _pytorch("--compile")),
)
# Only where the CPU has bfloat16: elsewhere it is emulated, and several times slower.
BFLOAT16_ENTRIES = (
    Entry("this project, float32", _python("ours", "float32")),
    Entry("PyTorch, bfloat16", _pytorch("--bfloat16")),
    Entry("PyTorch, compiled, bfloat16", _pytorch("--compile", "--bfloat16")),
)


def entries(_variant: str) -> tuple[Entry, ...]:
    """Return the contenders that make sense on this device, the same for all variants."""
    return ENTRIES + (BFLOAT16_ENTRIES if find_device().has_bfloat16 else ())


class Worker:
    """A contender's process, warmed up."""

    def __init__(self, process: subprocess.Popen[str], request: Mapping[str, Any]) -> None:
        self.process = process
        self.hello: dict[str, Any] = self._ask(request)  # number of parameters, and versions

    def run(self, what: str, seconds: float) -> float:
        """Return images per second of ``"work"``, or operations per second of ``"multiply"``."""
        return float(self._ask([what, seconds]))

    def _ask(self, question: object) -> Any:
        requests, answers = self.process.stdin, self.process.stdout
        if requests is None or answers is None:
            raise ValueError("a contender needs pipes for its input and output")
        with suppress(BrokenPipeError):  # the missing answer reveals it
            print(json.dumps(question), file=requests, flush=True)
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args!r} exited with {self.process.wait()}")
        return json.loads(answer)


@contextmanager
def started(entry: Entry, request: Mapping[str, Any]) -> Iterator[Worker]:
    """Start a contender, and kill it when the block ends."""
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "3"}
    environment.pop("TF_ENABLE_ONEDNN_OPTS", None)
    environment |= entry.environment
    pipe = subprocess.PIPE
    process = subprocess.Popen(  # noqa: S603 - commands of this package
        entry.command, env=environment, stdin=pipe, stdout=pipe, text=True
    )
    try:
        yield Worker(process, request)
    finally:
        process.kill()
        process.communicate()  # closes its pipes, broken or not


def count_operations(placed: Sequence[PlacedLayer], task: str) -> int:
    """Return the floating-point operations per image in convolutions and dense layers.

    A multiply-add counts as two. Training takes three times the forward pass, for the gradients of
    weights and inputs, but the first layer needs no gradient of its inputs.
    """
    multiply_adds = []
    before = IMAGE_SHAPE
    for place in placed:
        layer, shape = place.layer, place.shape
        if isinstance(layer, Conv):
            multiply_adds.append(shape.size * layer.kernel**2 * before.channels)
        elif isinstance(layer, Dense):
            multiply_adds.append(shape.size * before.size)
        before = shape
    if task == "train":
        return 2 * (3 * sum(multiply_adds) - multiply_adds[0])
    return 2 * sum(multiply_adds)


def read_variant(name: str) -> tuple[Variant, Description]:
    """Return a variant of params.yaml, and its description for images of MNIST's shape."""
    row: Variant = Params().get(f"variants.{name}", Variant)
    data: dict[str, Any] = {"dataset": "random", "image_shape": [*IMAGE_SHAPE], "classes": CLASSES}
    return row, Description(variant=name, network=row.network(), **data)


def request_for(name: str, task: str) -> tuple[dict[str, Any], Description]:
    """Return the request that tells a contender what to build, and the variant's description."""
    row, description = read_variant(name)
    layers = [place.layer.model_dump() for place in description.place_layers()]
    request = {
        "task": task, "variant": name, "layers": layers, "image_shape": list(IMAGE_SHAPE),
        "classes": CLASSES, "batch_size": row.batch_size,
    }  # fmt: skip
    return request, description


def measure(name: str, task: str, entries: Sequence[Entry], rounds: int) -> dict[str, Any]:
    """Return the speeds of contenders that run a variant in rotation, `rounds` times each.

    Raises
    ------
    RuntimeError
        If a contender fails, or its network has another number of parameters than the variant.
    """
    request, description = request_for(name, task)
    speeds: dict[str, list[float]] = defaultdict(list)
    products: dict[str, list[float]] = defaultdict(list)
    with ExitStack() as stack:
        workers = {}
        for entry in entries:
            worker = workers[entry.name] = stack.enter_context(started(entry, request))
            if worker.hello["parameters"] != description.parameters:
                raise RuntimeError(
                    f"{entry.name} has {worker.hello['parameters']:,} parameters, but {name} has "
                    f"{description.parameters:,}: not the same network"
                )
        order = deque(workers)
        for number in range(rounds):
            for key in order:
                products[key].append(workers[key].run("multiply", MULTIPLY_SECONDS) / 1e9)
                speeds[key].append(workers[key].run("work", WORK_SECONDS))
            order.rotate(-1)  # no contender is always the first
            latest = ", ".join(f"{key} {values[-1]:,.0f}" for key, values in speeds.items())
            print(f"{name}, {task}, {number + 1} of {rounds}, images/s: {latest}", flush=True)
    return {
        "operations_per_image": count_operations(description.place_layers(), task),
        "contenders": {
            key: {
                "images_per_second": spread(speeds[key]),
                "gigaflops": spread(products[key]),
                "versions": worker.hello["versions"],
            }
            for key, worker in workers.items()
        },
    }
