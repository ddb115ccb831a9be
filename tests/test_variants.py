from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.errors import ModelError, TrainingError
from pipeline.params import Params
from pipeline.variants import (
    Budget,
    BudgetOverride,
    Initializer,
    Network,
    Schedule,
    Shape,
    Variant,
    count_steps,
    place_layers,
)
from tests.conftest import ROOT

MNIST = Shape(28, 28, 1)
PARAMETERS = {
    "alexnet_norm": 7_709_386,
    "alexnet_dropout": 4_412_810,
    "lenet5": 61_706,
    "alexnet_2012": 58_299_082,
}
SHAPES = {
    "alexnet_norm": {
        "conv1": (28, 28, 64), "pool1": (14, 14, 64), "lrn1": (14, 14, 64), "dropout1": (14, 14, 64),
        "conv2": (14, 14, 192), "pool2": (7, 7, 192), "lrn2": (7, 7, 192), "dropout2": (7, 7, 192),
        "conv3": (7, 7, 384), "conv4": (7, 7, 256),
        "conv5": (7, 7, 256), "pool5": (4, 4, 256), "lrn5": (4, 4, 256), "dropout5": (4, 4, 256),
        "fc6": (1, 1, 1024), "fc7": (1, 1, 1024), "fc8": (1, 1, 10),
    },
    "alexnet_dropout": {
        "conv1": (28, 28, 64), "pool1": (14, 14, 64),
        "conv2": (14, 14, 128), "pool2": (7, 7, 128),
        "conv3": (7, 7, 256), "conv4": (7, 7, 256), "conv5": (7, 7, 128), "pool5": (4, 4, 128),
        "fc6": (1, 1, 1024), "dropout6": (1, 1, 1024),
        "fc7": (1, 1, 1024), "dropout7": (1, 1, 1024), "fc8": (1, 1, 10),
    },
    "lenet5": {
        "conv1": (28, 28, 6), "pool1": (14, 14, 6), "conv2": (10, 10, 16), "pool2": (5, 5, 16),
        "fc3": (1, 1, 120), "fc4": (1, 1, 84), "fc5": (1, 1, 10),
    },
    "alexnet_2012": {
        "conv1": (56, 56, 96), "lrn1": (56, 56, 96), "pool1": (27, 27, 96),
        "conv2": (27, 27, 256), "lrn2": (27, 27, 256), "pool2": (13, 13, 256),
        "conv3": (13, 13, 384), "conv4": (13, 13, 384),
        "conv5": (13, 13, 256), "pool5": (6, 6, 256),
        "fc6": (1, 1, 4096), "dropout6": (1, 1, 4096),
        "fc7": (1, 1, 4096), "dropout7": (1, 1, 4096), "fc8": (1, 1, 10),
    },
}  # fmt: skip


def variant(name: str) -> Variant:
    row: Variant = Params(ROOT / "params.yaml").get(f"variants.{name}", Variant)
    return row


def network(*layers: dict[str, Any], input_size: int | None = None) -> Network:
    return Network.model_validate(
        {"input_size": input_size, "initializer": {"type": "he_normal"}, "layers": list(layers)}
    )


@pytest.mark.parametrize("name", SHAPES)
def test_every_layers_output_shape_is_pinned(name: str) -> None:
    """Each layer of each variant puts out the shape that is written here."""
    placed = place_layers(variant(name), MNIST, 10)
    assert {layer.name: tuple(layer.shape) for layer in placed} == SHAPES[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_pinned(name: str) -> None:
    """Each variant has the published number of parameters for 10 classes."""
    placed = place_layers(variant(name), MNIST, 10)
    assert sum(layer.parameters for layer in placed) == PARAMETERS[name]


def test_the_table_has_these_variants() -> None:
    """A variant that is added to the table is pinned here too."""
    assert set(Params(ROOT / "params.yaml").content["variants"]) == set(PARAMETERS)


def test_the_articles_sample_budget_is_3124_steps() -> None:
    """200,000 samples in batches of 64 are 3,124 steps, as the article's loop counts."""
    row = variant("alexnet_norm")
    assert count_steps(row.budget, row.batch_size, 55_000) == 3124


@given(samples=st.integers(2, 10_000), batch_size=st.integers(1, 100))
def test_samples_are_counted_as_the_articles_loop_counts(samples: int, batch_size: int) -> None:
    """The step starts at 1 and runs while step * batch_size < samples."""
    step = 1
    while step * batch_size < samples:
        step += 1
    if step == 1:
        with pytest.raises(TrainingError, match="does not pay for one step"):
            count_steps(Budget(samples=samples), batch_size, 1000)
    else:
        assert count_steps(Budget(samples=samples), batch_size, 1000) == step - 1


def test_an_epoch_has_whole_batches() -> None:
    """An epoch of 1,000 images in batches of 64 has 15 steps."""
    assert count_steps(Budget(epochs=2), 64, 1000) == 30


def test_a_batch_larger_than_the_set_is_refused() -> None:
    """A batch that is larger than the training set is refused, with the remedy."""
    with pytest.raises(TrainingError, match="batch_size 64 is larger .* of 63 images; make it"):
        count_steps(Budget(epochs=1), 64, 63)


def test_a_data_set_overrides_the_budget_in_its_own_unit() -> None:
    """A data set's budget replaces the variant's own, unit by unit; null leaves it."""
    override = BudgetOverride(samples=500, epochs=None)
    assert override.apply(Budget(samples=9)) == Budget(samples=500)
    assert override.apply(Budget(epochs=9)) == Budget(epochs=9)


def test_the_schedule_rises_and_falls() -> None:
    """The rate rises over the warm-up, peaks once, and falls towards zero."""
    schedule = Schedule(warmup=0.1, decay="cosine")
    factors = [schedule.factor(step, 100) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.001


def test_a_constant_schedule_stays() -> None:
    """Without warm-up or decay the rate stays."""
    schedule = Schedule(warmup=0, decay="constant")
    assert {schedule.factor(step, 50) for step in range(1, 51)} == {1.0}


CONV = {"type": "conv", "filters": 4, "kernel": 5, "padding": "valid"}
POOL = {"type": "max_pool", "size": 3, "stride": 2, "padding": "valid"}


def test_a_kernel_that_shrinks_the_image_away_is_refused() -> None:
    """A kernel that leaves less than one pixel is refused by the name of its layer."""
    with pytest.raises(ModelError, match=r"layer conv2: a conv of 5×5 leaves less .* a 4×4 image"):
        place_layers(network(CONV, CONV), Shape(8, 8, 1), 10)


def test_a_pool_that_shrinks_the_image_away_is_refused() -> None:
    """A pool that leaves less than one pixel is refused by the name of its layer."""
    with pytest.raises(ModelError, match=r"layer pool1_2: a max_pool of 3×3 leaves less"):
        place_layers(network(CONV, POOL, POOL), Shape(8, 8, 1), 10)


def test_a_convolution_behind_a_dense_layer_is_refused() -> None:
    """A layer that needs an image cannot come behind a dense one."""
    with pytest.raises(ModelError, match="layer conv2: conv needs an image"):
        place_layers(network({"type": "dense", "units": 3}, CONV), MNIST, 10)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Budget, {"samples": 0}),
        (Budget, {"epochs": -1}),
        (Budget, {"samples": 1, "epochs": 1}),
        (Budget, {}),
        (Initializer, {"type": "normal"}),
        (Initializer, {"type": "he_normal", "stddev": 0.1}),
        (Schedule, {"warmup": 1, "decay": "cosine"}),
        (Network, {"input_size": 0, "initializer": {"type": "he_normal"}, "layers": []}),
        (Network, {"input_size": None, "initializer": {"type": "he_normal"}, "layers": [{}]}),
    ],
)
def test_values_that_make_no_sense_are_refused(kind: type, content: dict[str, Any]) -> None:
    """Zero, negative, missing or contradictory values are refused."""
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(content, strict=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 0), ("learning_rate", -0.1), ("batch_size", 0), ("batch_size", -1)],
)
def test_a_rate_or_batch_that_is_not_positive_is_refused(key: str, value: float) -> None:
    """A rate or batch that is zero or negative is refused."""
    row = variant("lenet5").model_dump(exclude_none=True) | {"input_size": None, key: value}
    with pytest.raises(ValidationError, match="greater than"):
        Variant.model_validate(row)
