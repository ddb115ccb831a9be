"""Layers as params.yaml spells them, and what follows from them by arithmetic.

Shapes and numbers of parameters are computed here without TensorFlow, so that a network that cannot
be built is rejected before TensorFlow is loaded.
"""

import itertools
from collections import Counter
from dataclasses import dataclass
from typing import Annotated, Literal, NamedTuple

from pydantic import Field, PositiveFloat, PositiveInt, model_validator

from pipeline.core.errors import ModelError
from pipeline.core.params import Section

# auto = bfloat16 if the hardware supports it, else float32
Precision = Literal["float32", "mixed_bfloat16", "auto"]
Activation = Literal["relu", "tanh", "linear"]
Padding = Literal["same", "valid"]


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


class BatchNorm(Section):
    """Batch normalisation of each channel, and an activation; S. Ioffe and C. Szegedy, 2015.

    Training normalises with a batch's own mean and variance, and keeps running means of them, which
    weigh the past with ``momentum``.
    """

    type: Literal["batch_norm"]
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.99
    epsilon: PositiveFloat = 1e-3
    activation: Activation = "relu"


class Affine(Section):
    """A scale and a shift for each channel, and an activation: what a trained batch norm is."""

    type: Literal["affine"]
    activation: Activation


class Dropout(Section):
    """Sets a share of the values to zero while training."""

    type: Literal["dropout"]
    rate: Annotated[float, Field(ge=0, lt=1)]


class Dense(Section):
    """Fully connected layer with a bias and an activation."""

    type: Literal["dense"]
    units: PositiveInt
    activation: Activation = "relu"


Layer = Annotated[
    Conv | Pool | LocalResponseNorm | BatchNorm | Affine | Dropout | Dense,
    Field(discriminator="type"),
]


class Initializer(Section):
    """How weights are initialised; biases start at zero.

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


class Network(Section):
    """The part of a variant that a saved model needs in order to be built again.

    ``input_size`` is the height and width to which images are resized inside the network, or null
    to take them unchanged. The classifier, a dense layer with one unit per class, is not listed.
    """

    input_size: PositiveInt | None
    initializer: Initializer
    layers: list[Layer]


class Shape(NamedTuple):
    """Height, width and channels of a layer's output; a flat one has height and width 1."""

    height: int
    width: int
    channels: int

    @property
    def size(self) -> int:
        """The number of values in the output for one image."""
        return self.height * self.width * self.channels


@dataclass(frozen=True)
class PlacedLayer:
    """A layer named as in the AlexNet paper, with its output shape and number of parameters.

    ``bias`` tells whether a weight layer has one: in front of a batch norm, which would subtract
    it, a linear one has none.
    """

    name: str
    layer: Layer
    shape: Shape
    parameters: int
    bias: bool = True

    @property
    def multiply_adds(self) -> int:
        """The multiplications, each with an addition, that one image takes in a weight layer."""
        if not isinstance(self.layer, Conv | Dense):
            return 0
        return (self.parameters - self.bias * self.shape.channels) * (
            self.shape.height * self.shape.width
        )


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
    names = {
        "conv": "conv", "dense": "fc", "max_pool": "pool", "average_pool": "pool",
        "batch_norm": "norm",
    }  # fmt: skip
    classifier = Dense(type="dense", units=classes, activation="linear")
    placed: list[PlacedLayer] = []
    number, flat = 0, False
    taken: Counter[str] = Counter()
    layers = [*network.layers, classifier]
    for layer, following in itertools.zip_longest(layers, layers[1:]):
        parameters = 0
        bias = not (
            isinstance(layer, Conv | Dense)
            and layer.activation == "linear"
            and isinstance(following, BatchNorm)
        )
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
            parameters = (layer.kernel**2 * shape.channels + bias) * layer.filters
            height, width = _slide(name, shape, layer.kernel, layer)
            shape = Shape(height, width, layer.filters)
        elif isinstance(layer, Pool):
            height, width = _slide(name, shape, layer.size, layer)
            shape = Shape(height, width, shape.channels)
        elif isinstance(layer, Dense):
            parameters = (shape.size + bias) * layer.units
            shape, flat = Shape(1, 1, layer.units), True
        elif isinstance(layer, BatchNorm | Affine):
            parameters = 2 * shape.channels
        placed.append(PlacedLayer(name, layer, shape, parameters, bias))
    return placed


def _slide(name: str, shape: Shape, window: int, layer: Conv | Pool) -> tuple[int, int]:
    """Return height and width after sliding a window, with TensorFlow's padding."""
    reach = 1 if layer.padding == "same" else window
    height, width = ((side - reach) // layer.stride + 1 for side in shape[:2])
    if height < 1 or width < 1:
        raise ModelError(
            f"layer {name}: a {layer.type} of {window}×{window} leaves less than one pixel of a "
            f"{shape.height}×{shape.width} image; make it smaller, pad with 'same', or set a "
            "larger input_size"
        )
    return height, width
