"""The table of variants: each one's layers, and how it is trained, as params.yaml spells them.

Shapes, parameters and steps are plain arithmetic here, so that a network that cannot be built is
refused before TensorFlow is loaded.
"""

import math
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import AfterValidator, Field, model_validator

from pipeline.errors import ModelError, TrainingError
from pipeline.params import Section

PositiveInt = Annotated[int, Field(ge=1)]
PositiveFloat = Annotated[float, Field(gt=0)]
Activation = Literal["relu", "tanh", "linear"]
Padding = Literal["same", "valid"]


def _no_seed_twice(seeds: list[int]) -> list[int]:
    twice = [seed for seed, count in Counter(seeds).items() if count > 1]
    if twice:
        raise ValueError(f"expected each seed once, received {twice[0]} twice")
    return seeds


# A training for each.
Seeds = Annotated[
    list[Annotated[int, Field(ge=0)]], Field(min_length=1), AfterValidator(_no_seed_twice)
]


class Conv(Section):
    """Convolution with square kernels, a bias, and an activation."""

    type: Literal["conv"]
    filters: PositiveInt
    kernel: PositiveInt
    stride: PositiveInt = 1
    padding: Padding = "same"
    activation: Activation = "relu"


class Pool(Section):
    """Maximum or mean over square windows."""

    type: Literal["max_pool", "average_pool"]
    size: PositiveInt
    stride: PositiveInt
    padding: Padding = "same"


class LocalResponseNorm(Section):
    """Normalisation over neighbouring channels; AlexNet, 2012, section 3.3."""

    type: Literal["lrn"]
    depth_radius: PositiveInt
    bias: PositiveFloat
    alpha: PositiveFloat
    beta: PositiveFloat


class Dropout(Section):
    """Sets a share of the values to zero while training."""

    type: Literal["dropout"]
    rate: Annotated[float, Field(ge=0, lt=1)]


class Dense(Section):
    """Fully connected layer with a bias and an activation."""

    type: Literal["dense"]
    units: PositiveInt
    activation: Activation = "relu"


Layer = Annotated[Conv | Pool | LocalResponseNorm | Dropout | Dense, Field(discriminator="type")]


class Initializer(Section):
    """How weights begin; biases begin at zero.

    ``stddev`` belongs to ``normal`` and ``truncated_normal``; the others derive theirs from the
    size of the layer.
    """

    type: Literal["he_normal", "glorot_uniform", "normal", "truncated_normal"]
    stddev: PositiveFloat | None = None

    @model_validator(mode="after")
    def _stddev_where_it_belongs(self) -> "Initializer":
        if (self.stddev is not None) != (self.type in ("normal", "truncated_normal")):
            raise ValueError(
                "stddev is for normal and truncated_normal, which need it, and for no other"
            )
        return self


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
    """A data set's own budget for the variants that count samples, and for those that count epochs.

    Null leaves a variant its own budget.
    """

    samples: PositiveInt | None
    epochs: PositiveInt | None

    def apply(self, budget: Budget) -> Budget:
        """Return the budget that holds on this data set."""
        if budget.samples is not None:
            return Budget(samples=self.samples or budget.samples)
        return Budget(epochs=self.epochs or budget.epochs)


class Schedule(Section):
    """The learning rate over a training: it rises, then stays or falls along a half cosine to 0."""

    warmup: Annotated[float, Field(ge=0, lt=1)]
    decay: Literal["constant", "cosine"]

    def factor(self, step: int, steps: int) -> float:
        """Return the share of the base rate at `step` of 1…`steps`.

        Source of the cosine: I. Loshchilov and F. Hutter, SGDR, 2017.
        """
        warmup_steps = math.ceil(self.warmup * steps)
        if step <= warmup_steps:
            return step / warmup_steps
        if self.decay == "constant":
            return 1.0
        done = (step - 1 - warmup_steps) / max(1, steps - warmup_steps)
        return 0.5 * (1 + math.cos(math.pi * done))


class Network(Section):
    """What a variant is: the part of its row that a saved model needs to be built again.

    ``input_size`` is the height and width to which images are resized inside the model, or null to
    take them as they are. The classifier, a dense layer with one unit a class, is not listed.
    """

    input_size: PositiveInt | None
    initializer: Initializer
    layers: list[Layer]


class Variant(Network):
    """A row of the table: the network, and how it is trained.

    ``seeds`` are the variant's own; without them it is trained with those of all variants.
    """

    budget: Budget
    batch_size: PositiveInt
    learning_rate: PositiveFloat
    seeds: Seeds | None = None

    def network(self) -> Network:
        """Return the row without its training."""
        return Network(input_size=self.input_size, initializer=self.initializer, layers=self.layers)


class Shape(NamedTuple):
    """Height, width and channels of what a layer puts out; a flat one has height and width 1."""

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        """How many values there are in one image's output."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class PlacedLayer:
    """A layer in its place: named as in the AlexNet paper, with output shape and parameters."""

    name: str
    layer: Layer
    shape: Shape
    parameters: int


def place_layers(network: Network, image_shape: Shape, classes: int) -> list[PlacedLayer]:
    """Name a network's layers and follow an image's shape through them.

    Weight layers are numbered together (``conv1`` … ``conv5``, ``fc6`` …); the others take the
    number of the weight layer before them (``pool1``, ``lrn1``, ``dropout6``).

    Parameters
    ----------
    network : Network
    image_shape : Shape
        Of the data set's images.
    classes : int
        Units of the classifier, which is the last layer.

    Raises
    ------
    ModelError
        If a kernel or pool leaves less than one pixel, or a layer that needs an image comes
        after a dense one.
    """
    side = network.input_size
    shape = Shape(side, side, image_shape.channels) if side else image_shape
    names = {"conv": "conv", "dense": "fc", "max_pool": "pool", "average_pool": "pool"}
    classifier = Dense(type="dense", units=classes, activation="linear")
    placed: list[PlacedLayer] = []
    number, flat = 0, False
    taken: Counter[str] = Counter()
    for layer in [*network.layers, classifier]:
        parameters = 0
        number += layer.type in ("conv", "dense")
        name = f"{names.get(layer.type, layer.type)}{number}"
        taken[name] += 1
        if taken[name] > 1:
            name += f"_{taken[name]}"
        if flat and isinstance(layer, Conv | Pool | LocalResponseNorm):
            raise ModelError(
                f"layer {name}: {layer.type} needs an image, but a dense layer comes before it; "
                "move it up"
            )
        if isinstance(layer, Conv):
            parameters = (layer.kernel**2 * shape.channels + 1) * layer.filters
            height, width = _slide(name, shape, layer.kernel, layer)
            shape = Shape(height, width, layer.filters)
        elif isinstance(layer, Pool):
            height, width = _slide(name, shape, layer.size, layer)
            shape = Shape(height, width, shape.channels)
        elif isinstance(layer, Dense):
            parameters = (shape.size + 1) * layer.units
            shape, flat = Shape(1, 1, layer.units), True
        placed.append(PlacedLayer(name, layer, shape, parameters))
    return placed


def _slide(name: str, shape: Shape, window: int, layer: Conv | Pool) -> tuple[int, int]:
    """Return height and width after sliding a window, as TensorFlow pads."""
    reach = 1 if layer.padding == "same" else window
    height, width = ((side - reach) // layer.stride + 1 for side in shape[:2])
    if height < 1 or width < 1:
        raise ModelError(
            f"layer {name}: a {layer.type} of {window}×{window} leaves less than one pixel of a "
            f"{shape.height}×{shape.width} image; make it smaller, pad with 'same', or set a "
            "larger input_size"
        )
    return height, width


def count_steps(budget: Budget, batch_size: int, images: int) -> int:
    """Return how many optimiser steps a budget allows.

    Samples are counted as the article's loop counts them: the step starts at 1 and runs while
    ``step * batch_size < samples``. An epoch has ``images // batch_size`` steps.

    Raises
    ------
    TrainingError
        If a batch is larger than the training set, or the budget does not pay for one step.
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
            f"a budget of {budget.samples:,} samples does not pay for one step of {batch_size:,}; "
            "raise it"
        )
    return steps
