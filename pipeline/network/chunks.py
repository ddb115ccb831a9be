"""How many images fit in a memory budget at once, by arithmetic."""

import itertools
import math
from collections.abc import Sequence
from typing import Annotated, Literal

from pydantic import AfterValidator, Field, PositiveFloat, PositiveInt

from pipeline.core.errors import EvaluationError
from pipeline.core.params import Section
from pipeline.network.layers import PlacedLayer, Precision

MB = 1e6  # memory is given in megabytes of 10⁶ bytes
# What the runtime itself takes with the first chunk: its graph, its threads' stacks, its kernels.
RUNTIME_MB = 48.0
# Up to this, larger chunks are as fast or faster; larger ones were not measured.
LARGEST_CHUNK = 4096


class Evaluate(Section):
    """How every model is evaluated."""

    memory_budget_mb: PositiveFloat
    chunk_size: PositiveInt | Literal["auto"]
    precision: Precision


def _rising(sizes: list[int]) -> list[int]:
    if sizes != sorted(set(sizes)):
        raise ValueError(f"expected rising numbers, received {sizes}")
    return sizes


class Profile(Section):
    """What is measured of every variant."""

    chunk_sizes: Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_rising)]
    training_steps: PositiveInt


def bytes_per_image(pixels: int, layers: Sequence[PlacedLayer], value_bytes: int) -> int:
    """Return the memory that one image takes on its way through a network, in bytes.

    While a layer computes, its input, its output and two scratch copies as large as the larger of
    both may be in memory; the layer that needs most decides.

    Parameters
    ----------
    pixels : int
        The number of values in an image, once it is resized.
    layers : sequence of PlacedLayer
    value_bytes : int
        The width of the type that the network computes in.
    """
    sizes = [pixels, *(layer.shape.size for layer in layers)]
    values = max(
        before + after + 2 * max(before, after) for before, after in itertools.pairwise(sizes)
    )
    return values * value_bytes


def largest_chunk(image_bytes: int, budget_mb: float) -> int:
    """Return how many images can pass through a network at once within a memory budget.

    Parameters
    ----------
    image_bytes : int
        From `bytes_per_image`.
    budget_mb : float
        Megabytes on top of the loaded model.

    Raises
    ------
    EvaluationError
        If the budget does not hold one image.
    """
    image_mb = image_bytes / MB
    size = int((budget_mb - RUNTIME_MB) / image_mb)
    if size < 1:
        raise EvaluationError(
            f"evaluate.memory_budget_mb of {budget_mb:g} does not hold one image; "
            f"this model needs at least {math.ceil(RUNTIME_MB + image_mb)}"
        )
    return min(size, LARGEST_CHUNK)
