"""How a variant is trained: budget, batch size, learning rate and its schedule, seeds."""

import math
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt, model_validator

from pipeline.core.errors import TrainingError
from pipeline.core.params import Distinct, Section
from pipeline.network.layers import BatchNorm, Network, Precision
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
    """The learning rate over a training: a linear warm-up, then its decay.

    It stays constant, falls to 0 along half a cosine, or is multiplied by ``per_epoch`` after each
    epoch.
    """

    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Literal["constant", "cosine", "exponential"]
    per_epoch: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _per_epoch_where_it_belongs(self) -> "Schedule":
        if (self.per_epoch is not None) != (self.decay == "exponential"):
            raise ValueError("per_epoch is for an exponential decay, which needs it, and no other")
        return self

    def factor(self, step: int, steps: int, steps_per_epoch: int) -> float:
        """Return the factor on the base rate at `step` of 1…`steps`.

        Source of the cosine: I. Loshchilov and F. Hutter, SGDR, 2017.
        """
        warmup_steps = math.ceil(self.warmup * steps)
        if step <= warmup_steps:
            return step / warmup_steps
        if self.decay == "constant":
            return 1.0
        if self.per_epoch is not None:
            epochs: int = (step - 1) // steps_per_epoch
            return self.per_epoch**epochs
        done = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))


class Augmentation(Section):
    """The largest changes; each image gets uniformly random ones up to them, to either side."""

    rotate: Annotated[float, Field(ge=0, le=180)] = 0  # degrees
    shear: Annotated[float, Field(ge=0, lt=90)] = 0  # degrees
    zoom: Annotated[float, Field(ge=0, lt=1)] = 0  # share of the size, for each axis by itself
    shift: Annotated[float, Field(ge=0, lt=1)] = 0  # share of the side
    cutout: NonNegativeInt = 0  # side of the square, in pixels

    def require_fits(self, image_shape: tuple[int, ...]) -> None:
        """Check that something of the images is left.

        Raises
        ------
        TrainingError
            If the cutout is as large as an image.
        """
        height, width = image_shape[:2]
        if self.cutout >= min(height, width):
            raise TrainingError(
                f"augmentation.cutout of {self.cutout} pixels leaves nothing of images of "
                f"{height}×{width}; make it smaller"
            )


class Variant(Network):
    """A row of the variants in params.yaml: the network, and how it is trained.

    ``seeds`` and ``schedule`` are the variant's own; without them those in ``train`` hold.
    ``averaging`` is the decay of an exponential moving average of the weights, which takes their
    place when they are validated and saved.
    """

    budget: Budget
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    seeds: Seeds | None = None
    schedule: Schedule | None = None
    augmentation: Augmentation | None = None
    averaging: Annotated[float, Field(gt=0, lt=1)] | None = None

    @model_validator(mode="after")
    def _batches_have_a_spread(self) -> "Variant":
        if self.batch_size == 1 and any(isinstance(layer, BatchNorm) for layer in self.layers):
            raise ValueError(
                "batch_norm needs the spread of a batch, and batch_size is 1; raise it, or leave "
                "the layer out"
            )
        return self

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
