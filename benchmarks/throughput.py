"""Images a second in training and inference: this project, plain Keras and PyTorch, in turns."""

import json
import os
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from benchmarks.machine import Spread, spread
from pipeline import model
from pipeline.params import Params
from pipeline.variants import Conv, Dense, PlacedLayer, Shape, Variant

IMAGE_SHAPE = Shape(28, 28, 1)
CLASSES = 10
TASKS = ("train", "infer")
TURN_SECONDS = 3.0
MULTIPLY_SECONDS = 1.0
PYTORCH = ".venv-bench/bin/python"


@dataclass(frozen=True)
class Entry:
    """A contender's name, the command that starts it, and what it wants in its environment."""

    name: str
    command: Sequence[str]
    environment: Mapping[str, str] = field(default_factory=dict)


def _pytorch(*flags: str) -> list[str]:
    return [PYTORCH, "-m", "benchmarks.pytorch", *flags]


ENTRIES = (
    Entry("this project", [sys.executable, "-m", "benchmarks.ours", "auto"]),
    Entry("Keras", [sys.executable, "-m", "benchmarks.plain_keras"]),
    Entry(
        "Keras, oneDNN on",
        [sys.executable, "-m", "benchmarks.plain_keras"],
        {"TF_ENABLE_ONEDNN_OPTS": "1"},
    ),
    Entry("PyTorch", _pytorch()),
    Entry("PyTorch, compiled", _pytorch("--compile")),
)
# Where the device does not multiply in bfloat16 it is emulated, and several times slower.
BFLOAT16_ENTRIES = (
    Entry("this project, float32", [sys.executable, "-m", "benchmarks.ours", "float32"]),
    Entry("PyTorch, bfloat16", _pytorch("--bfloat16")),
    Entry("PyTorch, compiled, bfloat16", _pytorch("--compile", "--bfloat16")),
)


class Worker:
    """A contender's process, warmed up."""

    def __init__(self, process: subprocess.Popen[str], request: Mapping[str, Any]) -> None:
        self.process = process
        self.hello: dict[str, Any] = self._ask(request)

    def take_turn(self, what: str, seconds: float) -> float:
        """Return images, or operations, a second."""
        return float(self._ask([what, seconds]))

    def _ask(self, question: object) -> Any:
        requests, answers = self.process.stdin, self.process.stdout
        if requests is None or answers is None:
            raise ValueError("a contender needs pipes for its input and output")
        with suppress(BrokenPipeError):  # told by the missing answer
            print(json.dumps(question), file=requests, flush=True)
        answer = answers.readline()
        if not answer:
            raise RuntimeError(f"{self.process.args!r} ended with {self.process.wait()}")
        return json.loads(answer)


@contextmanager
def started(entry: Entry, request: Mapping[str, Any]) -> Iterator[Worker]:
    """Start a contender, and end it with the block."""
    environment = {
        name: value for name, value in os.environ.items() if name != "TF_ENABLE_ONEDNN_OPTS"
    }
    process = subprocess.Popen(  # noqa: S603 - one of ENTRIES
        entry.command,
        env=environment | {"TF_CPP_MIN_LOG_LEVEL": "3"} | dict(entry.environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        yield Worker(process, request)
    finally:
        process.kill()
        process.communicate()  # closes its pipes, broken or not


def count_operations(placed: Sequence[PlacedLayer], task: str) -> int:
    """Return the floating-point operations of an image in convolutions and dense layers.

    Inference needs each multiply-add once; training twice more, for the gradients of weights and of
    inputs, the latter not in the first layer.
    """
    multiply_adds = []
    channels = IMAGE_SHAPE.channels
    before = IMAGE_SHAPE.size
    for place in placed:
        layer, shape = place.layer, place.shape
        if isinstance(layer, Conv):
            multiply_adds.append(shape.size * layer.kernel**2 * channels)
        elif isinstance(layer, Dense):
            multiply_adds.append(shape.size * before)
        channels, before = shape.channels, shape.size
    times = 3 if task == "train" else 1
    first = multiply_adds[0] if task == "train" else 0
    return 2 * (times * sum(multiply_adds) - first)


class Measured(NamedTuple):
    """What a contender did: images a second, and how its matrix products went beside it."""

    images_per_second: Spread
    gigaflops: Spread
    versions: dict[str, str]


def read_variant(name: str) -> tuple[Variant, model.Description]:
    """Return a variant of params.yaml, and its description for images of MNIST's shape."""
    row: Variant = Params().get(f"variants.{name}", Variant)
    return row, model.Description(
        dataset="random",
        variant=name,
        image_shape=list(IMAGE_SHAPE),
        classes=CLASSES,
        network=row.network(),
    )


def request_for(name: str, task: str) -> tuple[dict[str, Any], model.Description]:
    """Return what a contender is asked for, and the variant's network."""
    row, description = read_variant(name)
    request = {
        "task": task,
        "variant": name,
        "layers": [place.layer.model_dump() for place in description.place_layers()],
        "image_shape": list(IMAGE_SHAPE),
        "classes": CLASSES,
        "batch_size": row.batch_size,
        "memory_budget_mb": Params().get("evaluate.memory_budget_mb", float),
    }
    return request, description


def measure(name: str, task: str, entries: Sequence[Entry], rounds: int) -> dict[str, Measured]:
    """Let contenders take turns with a variant.

    Raises
    ------
    RuntimeError
        If one of them fails, or has other parameters than the variant.
    """
    request, description = request_for(name, task)
    with ExitStack() as stack:
        workers = {}
        for entry in entries:
            worker = workers[entry.name] = stack.enter_context(started(entry, request))
            if worker.hello["parameters"] != description.parameters:
                raise RuntimeError(
                    f"{entry.name} has {worker.hello['parameters']:,} parameters, {name} has "
                    f"{description.parameters:,}: they would not do the same"
                )
        speeds: dict[str, list[float]] = {key: [] for key in workers}
        products: dict[str, list[float]] = {key: [] for key in workers}
        order = deque(workers)
        for number in range(rounds):
            for key in order:
                products[key].append(workers[key].take_turn("multiply", MULTIPLY_SECONDS) / 1e9)
                speeds[key].append(workers[key].take_turn("work", TURN_SECONDS))
            order.rotate(-1)  # nobody is always the first
            turn = ", ".join(f"{key} {values[-1]:,.0f}" for key, values in speeds.items())
            print(f"{name}, {task}, {number + 1} of {rounds}, images/s: {turn}", flush=True)
        return {
            key: Measured(spread(speeds[key]), spread(products[key]), worker.hello["versions"])
            for key, worker in workers.items()
        }
