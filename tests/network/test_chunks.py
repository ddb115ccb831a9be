import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import EvaluationError
from pipeline.network.chunks import (
    LARGEST_CHUNK,
    MB,
    RUNTIME_MB,
    Evaluate,
    Profile,
    bytes_per_image,
    largest_chunk,
)
from pipeline.network.layers import Shape, place_layers
from tests.network.helpers import network, variant


def test_the_widest_layer_decides_the_memory() -> None:
    """An image takes the input, the output and two scratch copies of the widest layer."""
    placed = place_layers(variant("alexnet_norm"), Shape(28, 28, 1), 10)
    # conv1 is the widest: its 28×28×64 go into the pool, with two copies of it.
    assert bytes_per_image(28 * 28, placed, 4) == 4 * (28 * 28 * 64 * 3 + 14 * 14 * 64)
    assert bytes_per_image(28 * 28, placed, 2) * 2 == bytes_per_image(28 * 28, placed, 4)


def test_a_large_image_can_be_the_widest_layer() -> None:
    """The resized image counts as the first layer's input."""
    placed = place_layers(network({"type": "dense", "units": 3}), Shape(28, 28, 1), 10)
    assert bytes_per_image(100 * 100, placed, 4) == 4 * (3 * 100 * 100 + 3)


@given(image_bytes=st.integers(1, 10**8), budget_mb=st.floats(50, 10_000))
def test_the_chunk_is_the_largest_that_the_budget_holds(image_bytes: int, budget_mb: float) -> None:
    """A chunk and the runtime fit in the budget, and one image more would not."""
    room = (budget_mb - RUNTIME_MB) * MB
    try:
        chunk = largest_chunk(image_bytes, budget_mb)
    except EvaluationError:
        assert image_bytes > room * (1 - 1e-9)
        return
    assert chunk * image_bytes <= room * (1 + 1e-9)
    assert chunk == LARGEST_CHUNK or (chunk + 1) * image_bytes > room * (1 - 1e-9)


def test_a_budget_for_less_than_one_image_is_rejected() -> None:
    """A budget that does not hold one image is rejected, with the one that would."""
    with pytest.raises(
        EvaluationError, match="evaluate.memory_budget_mb of 10 does not hold one .* at least 51"
    ):
        largest_chunk(2_500_000, 10)


GOOD = {"memory_budget_mb": 128, "chunk_size": "auto", "precision": "auto"}


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        *(
            (Evaluate, GOOD | wrong)
            for wrong in (
                {"memory_budget_mb": 0}, {"chunk_size": 0}, {"chunk_size": "all"},
                {"precision": "float23"}, {"chunks": 3},
            )
        ),
        (Profile, {"chunk_sizes": [], "training_steps": 1}),
        (Profile, {"chunk_sizes": [0], "training_steps": 1}),
        (Profile, {"chunk_sizes": [8, 4], "training_steps": 1}),
        (Profile, {"chunk_sizes": [4, 4], "training_steps": 1}),
        (Profile, {"chunk_sizes": [4], "training_steps": 0}),
    ],
)  # fmt: skip
def test_nonsense_is_rejected(kind: type, content: dict[str, object]) -> None:
    """Sizes that do not rise, zero, and unknown words are rejected."""
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(content, strict=True)
