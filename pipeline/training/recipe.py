"""How a variant is trained: budget, batch size, learning rate and its schedule, seeds."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.core.errors import TrainingError
from pipeline.core.params import Distinct, Section
from pipeline.network.layers import Network, Precision
from pipeline.training.checkpoint import Interval

Seeds = Distinct[NonNegativeInt]  # one training each


class Budget(Section):
    """How long to train: for a number of samples, or for a number of epochs."""

    samples: PositiveInt | None = None
    epochs: PositiveInt | None = None

    @model_validator(mode="after")
    def _exactly_one(self) -> "Budget":
        if (self.samples is None) == (self.epochs is None):
            raise ValueError("expected either samples or epochs, and not both")
        return self


class BudgetOverride(Section):
    """Overrides the variants' budgets on a data set, in the unit that each variant uses.

    Null keeps the variant's own budget.
    """

    samples: PositiveInt | None
    epochs: PositiveInt | None

    def apply(self, budget: Budget) -> Budget:
        """Return the budget to use on this data set."""
        if budget.samples is not None:
            return Budget(samples=self.samples or budget.samples)
        return Budget(epochs=self.epochs or budget.epochs)


class Schedule(Section):
    """The learning rate over a training: a linear warm-up, then constant or a half cosine to 0."""

    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Literal["constant", "cosine"]

    def factor(self, step: int, steps: int) -> float:
        """Return the factor on the base rate at `step` of 1…`steps`.

        Source of the cosine: I. Loshchilov and F. Hutter, SGDR, 2017.
        """
        warmup_steps = math.ceil(self.warmup * steps)
        if step <= warmup_steps:
            return step / warmup_steps
        if self.decay == "constant":
            return 1.0
        done = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))


class Variant(Network):
    """A row of the variants in params.yaml: the network, and how it is trained.

    ``seeds`` are the variant's own; without them it is trained with those in ``train.seeds``.
    """

    budget: Budget
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    seeds: Seeds | None = None

    def network(self) -> Network:
        """Return the network alone."""
        return Network(input_size=self.input_size, initializer=self.initializer, layers=self.layers)


class Train(Section):
    """How every variant is trained: once per seed in ``seeds``, unless it has its own."""

    seeds: Seeds
    precision: Precision
    schedule: Schedule
    log_every_steps: PositiveInt


class Runtime(Section):
    """What changes no result, and so reruns nothing."""

    checkpoint_every: Interval


def count_steps(budget: Budget, batch_size: int, images: int) -> int:
    """Return the number of optimiser steps in a budget.

    Samples are counted as the article's loop counts them: the step starts at 1 and runs while
    ``step * batch_size < samples``. An epoch has ``images // batch_size`` steps.

    Raises
    ------
    TrainingError
        If a batch is larger than the training set, or the budget is smaller than one step.
    """
    if batch_size > images:
        raise TrainingError(
            f"batch_size {batch_size:,} is larger than the training set of {images:,} images; "
            "make it smaller"
        )
    if budget.epochs is not None:
        return budget.epochs * (images // batch_size)
    assert budget.samples is not None
    steps = (budget.samples - 1) // batch_size
    if steps < 1:
        raise TrainingError(
            f"a budget of {budget.samples:,} samples is smaller than one step of {batch_size:,}; "
            "raise it"
        )
    return steps
