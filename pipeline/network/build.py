"""Build a variant's network in Keras."""

from functools import partial
from typing import NamedTuple

import numpy as np
from pydantic import Field, PositiveFloat

from pipeline.core.errors import ModelError
from pipeline.core.params import Section
from pipeline.network import kernels
from pipeline.network.framework import keras
from pipeline.network.layers import (
    Affine,
    BatchNorm,
    Conv,
    Dense,
    Dropout,
    Initializer,
    LocalResponseNorm,
    Network,
    PlacedLayer,
    Pool,
    Shape,
    place_layers,
)

PIXEL_MAX = 255


class Description(Section):
    """All that is needed to build a network, and to read its answers; the header of a model file.

    Logits are divided by the ``temperature`` before they are taken for log-probabilities.
    """

    format: int = Field(default=2, ge=1, le=2)
    dataset: str
    variant: str
    image_shape: list[int] = Field(min_length=3, max_length=3)
    classes: int = Field(ge=2)
    network: Network
    class_names: list[str] | None = None
    temperature: PositiveFloat = 1.0

    def place_layers(self) -> list[PlacedLayer]:
        """Return the network's layers with their output shapes."""
        return place_layers(self.network, Shape(*self.image_shape), self.classes)

    @property
    def parameters(self) -> int:
        """The number of weights and biases that are trained."""
        return sum(place.parameters for place in self.place_layers())


def build(description: Description, *, seed: int = 0, precision: str = "float32") -> keras.Model:
    """Return a variant's network with initial weights.

    Parameters
    ----------
    description : Description
    seed : int
        For weights and dropout; each layer derives its own from it.
    precision : {"float32", "mixed_bfloat16", "bfloat16"}
        Keras dtype policy of all layers but the logits, which are float32.

    Returns
    -------
    keras.Model
        From uint8 images (n, height, width, channels) to float32 logits (n, classes).

    Raises
    ------
    ModelError
        If the layers do not fit the images, or Keras builds another network than described.
    """
    placed = description.place_layers()
    policy = keras.DTypePolicy(precision)
    seeds = np.random.SeedSequence(seed).generate_state(len(placed)).tolist()
    inputs = keras.Input(description.image_shape, dtype="uint8", name="images")
    x = keras.layers.Rescaling(1 / PIXEL_MAX, name="scale", dtype=policy)(inputs)
    if side := description.network.input_size:
        x = keras.layers.Resizing(side, side, name="resize", dtype=policy)(x)
    for place, layer_seed in zip(placed, seeds, strict=True):
        layer, name = place.layer, place.name
        if not isinstance(layer, Conv | Dense):
            x = _plain_layer(layer, layer_seed)(name=name, dtype=policy)(x)
            continue
        if isinstance(layer, Dense) and len(x.shape) > 2:
            x = keras.layers.Flatten(name=f"flatten_{name}", dtype=policy)(x)
        x = _weight_layer(layer)(
            name=name,
            activation=layer.activation,
            use_bias=place.bias,
            kernel_initializer=_initializer(description.network.initializer, layer_seed),
            dtype="float32" if place is placed[-1] else policy,
        )(x)
    network = keras.Model(inputs, x, name=description.variant)
    built = sum(weight.value.shape.num_elements() for weight in network.trainable_variables)
    if built != description.parameters:
        raise ModelError(
            f"{description.variant}: Keras built {built:,} parameters, expected "
            f"{description.parameters:,}; install the locked version of Keras: make setup"
        )
    return network


class LoadedModel(NamedTuple):
    """A network for inference with its description."""

    network: keras.Model
    description: Description


def build_for_inference(description: Description, precision: str) -> LoadedModel:
    """Return a network for inference, whose weights have the type that it computes in.

    Training keeps them in float32, and rounds them to the same values at each step.

    Parameters
    ----------
    description : Description
    precision : {"float32", "mixed_bfloat16"}
        Keras dtype policy of training.
    """
    compute_dtype = keras.DTypePolicy(precision).compute_dtype
    return LoadedModel(build(description, precision=compute_dtype), description)


def _weight_layer(layer: Conv | Dense) -> partial[keras.layers.Layer]:
    if isinstance(layer, Dense):
        return partial(keras.layers.Dense, layer.units)
    return partial(
        kernels.Conv2D,
        layer.filters,
        layer.kernel,
        strides=layer.stride,
        padding=layer.padding,
    )


def _plain_layer(
    layer: Pool | LocalResponseNorm | BatchNorm | Affine | Dropout, seed: int
) -> partial[keras.layers.Layer]:
    match layer:
        case Pool():
            pools = {
                "max_pool": keras.layers.MaxPooling2D,
                "average_pool": keras.layers.AveragePooling2D,
            }
            return partial(
                pools[layer.type], layer.size, strides=layer.stride, padding=layer.padding
            )
        case LocalResponseNorm():
            return partial(
                kernels.LocalResponseNormalization,
                layer.depth_radius,
                layer.bias,
                layer.alpha,
                layer.beta,
            )
        case BatchNorm():
            return partial(
                kernels.BatchNormalization, layer.momentum, layer.epsilon, layer.activation
            )
        case Affine():
            return partial(kernels.Affine, layer.activation)
        case Dropout():
            return partial(keras.layers.Dropout, layer.rate, seed=seed)


def _initializer(initializer: Initializer, seed: int) -> keras.initializers.Initializer:
    match initializer.type:
        case "he_normal":
            return keras.initializers.HeNormal(seed)
        case "glorot_uniform":
            return keras.initializers.GlorotUniform(seed)
        case "normal":
            return keras.initializers.RandomNormal(stddev=initializer.stddev, seed=seed)
        case "truncated_normal":
            return keras.initializers.TruncatedNormal(stddev=initializer.stddev, seed=seed)
