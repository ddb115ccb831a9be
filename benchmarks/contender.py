"""One side of a throughput comparison: a process that works on request.

All contenders start and warm up first, then run in rotation for a few seconds each, so that
background load affects all of them alike. This module imports NumPy alone, because PyTorch runs in
an environment of its own.
"""

import json
import math
import operator
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

IMAGES = 4096
INFERENCE_BATCH = 128
MATRIX_SIDE = 2048

Work = Callable[[int], int]


class Contender(NamedTuple):
    """A network in memory, ready to work, with its number of weights and biases to be checked.

    ``work`` runs that many training steps or inference batches, and returns the number of images;
    ``multiply`` multiplies that many matrices, and returns the number of operations.
    """

    parameters: int
    versions: dict[str, str]
    work: Work
    multiply: Work


def random_images(request: dict[str, Any]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return random images (`IMAGES`, height, width, channels) and labels, both uint8."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, *request["image_shape"]), dtype=np.uint8)
    return images, random.integers(0, request["classes"], IMAGES, dtype=np.uint8)


def matrix_products(
    convert: Callable[[NDArray[np.float32]], Any],
    multiply: Callable[[Any, Any], Any] = operator.matmul,
) -> Work:
    """Return `Contender.multiply` for a library, given how to convert and multiply matrices."""
    random = np.random.default_rng(0)
    matrix = convert(random.standard_normal((MATRIX_SIDE, MATRIX_SIDE), np.float32))

    def work(times: int) -> int:
        for _ in range(times):
            product = multiply(matrix, matrix)
        float(product[0, 0])  # waits for the last one
        return times * 2 * MATRIX_SIDE**3

    return work


class TimedWork:
    """Runs work for about as long as asked; the previous run says how much fits."""

    def __init__(self, work: Work) -> None:
        self.work = work
        work(1)  # compiles
        self.pieces_per_second = self._time(2)[1]

    def run(self, seconds: float) -> float:
        """Return the units done per second.

        An untimed quarter goes first: it refills caches and pages lost while others ran.
        """
        pieces = max(1, round(self.pieces_per_second * seconds))
        self.work(math.ceil(pieces / 4))
        speed, self.pieces_per_second = self._time(pieces)
        return speed

    def _time(self, pieces: int) -> tuple[float, float]:
        begin = time.perf_counter()
        units = self.work(pieces)
        elapsed = time.perf_counter() - begin
        return units / elapsed, pieces / elapsed


def serve(make: Callable[[dict[str, Any]], Contender]) -> None:
    """Answer requests on standard input, each a line of JSON, with a line of JSON.

    The first request is from `throughput.request_for` and says what to build; the others are
    ``["work", seconds]`` and ``["multiply", seconds]``.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def answer(content: object) -> None:
        print(json.dumps(content), file=answers, flush=True)

    contender = make(json.loads(sys.stdin.readline()))
    timed = {"work": TimedWork(contender.work), "multiply": TimedWork(contender.multiply)}
    answer({"parameters": contender.parameters, "versions": contender.versions})
    for line in sys.stdin:
        what, seconds = json.loads(line)
        answer(timed[what].run(seconds))
