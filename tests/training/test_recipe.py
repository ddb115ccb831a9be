from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import TrainingError
from pipeline.training.recipe import (
    Augmentation,
    Budget,
    BudgetOverride,
    Runtime,
    Schedule,
    Seeds,
    Variant,
    count_steps,
)
from tests.network.helpers import variant


def test_the_articles_sample_budget_is_3124_steps() -> None:
    """200,000 samples in batches of 64 are 3,124 steps, as the article's loop counts."""
    row = variant("alexnet_norm")
    assert count_steps(row.budget, row.batch_size, 55_000) == 3124


@given(samples=st.integers(2, 10_000), batch_size=st.integers(1, 100))
def test_samples_are_counted_as_in_the_articles_loop(samples: int, batch_size: int) -> None:
    """The step starts at 1 and runs while step * batch_size < samples, as in the article."""
    step = 1
    while step * batch_size < samples:
        step += 1
    if step == 1:
        with pytest.raises(TrainingError, match="samples is smaller than one step of"):
            count_steps(Budget(samples=samples), batch_size, 1000)
    else:
        assert count_steps(Budget(samples=samples), batch_size, 1000) == step - 1


def test_an_epoch_has_whole_batches() -> None:
    """An epoch of 1,000 images in batches of 64 has 15 steps."""
    assert count_steps(Budget(epochs=2), 64, 1000) == 30


def test_a_batch_larger_than_the_training_set_is_rejected() -> None:
    """A batch that is larger than the training set is rejected, with the remedy."""
    with pytest.raises(TrainingError, match="batch_size 64 is larger .* of 63 images; make it"):
        count_steps(Budget(epochs=1), 64, 63)


def test_a_data_set_overrides_the_budget_in_its_own_unit() -> None:
    """A data set's budget replaces the variant's in the same unit; null keeps the variant's."""
    override = BudgetOverride(samples=500, epochs=None)
    assert override.apply(Budget(samples=9)) == Budget(samples=500)
    assert override.apply(Budget(epochs=9)) == Budget(epochs=9)


def test_the_rate_rises_then_falls() -> None:
    """The learning rate rises over the warm-up, peaks, and falls towards zero."""
    schedule = Schedule(warmup=0.1, decay="cosine")
    factors = [schedule.factor(step, 100, 10) for step in range(1, 101)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == 1.0
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert 0 < factors[-1] < 0.001


def test_a_constant_schedule_is_constant() -> None:
    """Without warm-up and decay the learning rate never changes."""
    schedule = Schedule(warmup=0, decay="constant")
    assert {schedule.factor(step, 50, 10) for step in range(1, 51)} == {1.0}


def test_an_exponential_rate_falls_after_each_epoch() -> None:
    """It is multiplied by the same factor after each epoch, and is the same within one."""
    schedule = Schedule(warmup=0, decay="exponential", per_epoch=0.95)
    factors = [schedule.factor(step, 21, 6) for step in range(1, 22)]
    assert factors == pytest.approx([0.95 ** (step // 6) for step in range(21)])


def test_the_warm_up_comes_before_an_exponential_decay() -> None:
    """The rate rises over the warm-up first; epochs count from the begin of the training."""
    schedule = Schedule(warmup=0.2, decay="exponential", per_epoch=0.5)
    factors = [schedule.factor(step, 20, 5) for step in range(1, 21)]
    assert factors == [0.25, 0.5, 0.75, 1.0, 1.0, *[0.5] * 5, *[0.25] * 5, *[0.125] * 5]


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Budget, {"samples": 0}),
        (Budget, {"epochs": -1}),
        (Budget, {"samples": 1, "epochs": 1}),
        (Budget, {}),
        (Schedule, {"warmup": 1, "decay": "cosine"}),
        (Schedule, {"warmup": 0.1, "decay": "linear"}),
        (Schedule, {"warmup": 0.1, "decay": "exponential"}),
        (Schedule, {"warmup": 0.1, "decay": "cosine", "per_epoch": 0.9}),
        (Schedule, {"warmup": 0.1, "decay": "exponential", "per_epoch": 1.0}),
        (Schedule, {"warmup": 0.1, "decay": "exponential", "per_epoch": 0}),
        (Augmentation, {"rotate": -1}),
        (Augmentation, {"rotate": 181}),
        (Augmentation, {"shear": 90}),
        (Augmentation, {"zoom": 1}),
        (Augmentation, {"shift": 1.0}),
        (Augmentation, {"cutout": 2.5}),
        (Augmentation, {"flip": True}),
        (Seeds, []),
        (Seeds, [-1]),
        (Seeds, [1, 1]),
        (Runtime, {"checkpoint_every": {"steps": 1, "seconds": 1}}),
    ],
)
def test_nonsense_is_rejected(kind: Any, content: object) -> None:
    """Zero, negative, missing or contradictory values are rejected."""
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(content, strict=True)


@pytest.mark.parametrize(
    ("key", "value"),
    [("learning_rate", 0), ("learning_rate", -0.1), ("batch_size", 0), ("batch_size", -1),
     ("averaging", 0)],
)  # fmt: skip
def test_rates_and_batches_must_be_positive(key: str, value: float) -> None:
    """A learning rate, batch size or averaging that is zero or negative is rejected."""
    row = variant("lenet5").model_dump(exclude_none=True) | {"input_size": None, key: value}
    with pytest.raises(ValidationError, match="greater than"):
        Variant.model_validate(row)


def test_a_batch_norm_needs_more_than_one_image() -> None:
    """A batch of one image has no spread, so it cannot be normalised."""
    row = variant("deotte").model_dump(exclude_none=True) | {"input_size": None}
    assert Variant.model_validate(row | {"batch_size": 2}).batch_size == 2
    with pytest.raises(ValidationError, match="batch_norm needs the spread of a batch, and batch_"):
        Variant.model_validate(row | {"batch_size": 1})
    plain = variant("lenet5").model_dump(exclude_none=True) | {"input_size": None, "batch_size": 1}
    assert Variant.model_validate(plain).batch_size == 1


@pytest.mark.parametrize(("cutout", "fits"), [(0, True), (11, True), (12, False), (40, False)])
def test_a_cutout_leaves_something_of_an_image(cutout: int, fits: bool) -> None:
    """A cutout has to be smaller than the shorter side of the images."""
    augmentation = Augmentation(cutout=cutout)
    if fits:
        augmentation.require_fits((12, 17, 1))
        return
    with pytest.raises(TrainingError, match=f"cutout of {cutout} pixels leaves .* of 12×17; make"):
        augmentation.require_fits((12, 17, 1))


def test_a_variants_network_says_nothing_of_its_training() -> None:
    """The network alone, which a model file describes, does not change with the training."""
    row = variant("lenet5")
    assert row.model_copy(update={"learning_rate": 1.0}).network() == row.network()
    assert set(row.network().model_dump()) == {"input_size", "initializer", "layers"}
