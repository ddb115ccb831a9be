"""What a contender in a measurement of throughput is: a process that works when it is its turn.

All contenders are started and warmed up first; then they take turns of a few seconds, so that
whatever else the machine does meets all of them alike. This module needs NumPy alone, since PyTorch
has an environment of its own.
"""

import json
import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

IMAGES = 4096
INFERENCE_BATCH = 128
MATRIX_SIDE = 2048

Work = Callable[[int], int]


@dataclass(frozen=True)
class Contender:
    """A network in memory, ready to work.

    Attributes
    ----------
    parameters : int
        Weights and biases, which must be the variant's.
    versions : dict of str to str
        Of the libraries.
    work : callable
        Makes so many training steps, or classifies so many batches, and returns the images.
    multiply : callable
        Multiplies so many square matrices of `MATRIX_SIDE`, and returns the operations.
    """

    parameters: int
    versions: dict[str, str]
    work: Work
    multiply: Work


def random_images(
    image_shape: tuple[int, ...], classes: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return images of shape (`IMAGES`, height, width, channels) and their labels, both uint8."""
    random = np.random.default_rng(0)
    images = random.integers(0, 256, (IMAGES, *image_shape), dtype=np.uint8)
    return images, random.integers(0, classes, IMAGES, dtype=np.uint8)


class Turns:
    """Calls a piece of work for about so many seconds, with what the turn before has taught.

    Parameters
    ----------
    work : callable
    """

    def __init__(self, work: Work) -> None:
        self.work = work
        work(1)  # compiles
        self.pieces_per_second = self._time(2)[1]

    def take(self, seconds: float) -> float:
        """Return the units done in a second.

        A quarter of the turn goes before it unmeasured: caches, and pages that the system took back
        while others had their turns, are not what is compared.
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
    """Answer requests from standard input: a JSON line each, and one back.

    The first one says what to build: ``task`` ("train" or "infer"), ``layers`` (rows of
    params.yaml, the classifier included), ``image_shape``, ``classes`` and what else the contender
    wants. The others are ``["work", seconds]`` and ``["multiply", seconds]``.
    """
    answers, sys.stdout = sys.stdout, sys.stderr  # libraries may print

    def answer(content: object) -> None:
        print(json.dumps(content), file=answers, flush=True)

    contender = make(json.loads(sys.stdin.readline()))
    turns = {"work": Turns(contender.work), "multiply": Turns(contender.multiply)}
    answer({"parameters": contender.parameters, "versions": contender.versions})
    for line in sys.stdin:
        what, seconds = json.loads(line)
        answer(turns[what].take(seconds))
