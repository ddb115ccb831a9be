"""Build a variant in Keras, and keep it in a file that holds numbers and its own description only.

A model file is a safetensors file: weights by layer name, and in its header the network's row, the
image shape and the classes, as JSON. Reading one runs no code from it.
"""

import json
import re
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import safetensors.numpy
from pydantic import Field, ValidationError

from pipeline.convolution import Conv2D
from pipeline.errors import ModelError, one_line
from pipeline.files import whole_file
from pipeline.framework import keras, tf
from pipeline.params import Section
from pipeline.variants import (
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

HEADER_KEY = "alexnet_mnist"
SEED_FILE = re.compile(r"seed_(\d+)\.safetensors")
PIXEL_MAX = 255
ALEXNET_BETA = 0.75
FLOAT32_BYTES = 4


class Description(Section):
    """What a model file says of itself."""

    format: int = Field(default=1, ge=1, le=1)
    dataset: str
    variant: str
    image_shape: list[int] = Field(min_length=3, max_length=3)
    classes: int = Field(ge=2)
    network: Network

    def place_layers(self) -> list[PlacedLayer]:
        """Return the network's layers with their output shapes."""
        return place_layers(self.network, Shape(*self.image_shape), self.classes)

    @property
    def parameters(self) -> int:
        """How many weights and biases there are."""
        return sum(place.parameters for place in self.place_layers())


class LocalResponseNormalization(keras.layers.Layer):
    """AlexNet's normalisation over neighbouring channels, as a product with a band matrix.

    ``y = x / (bias + alpha * sum(x²))**beta``, the sum over the channels at most ``depth_radius``
    away. It is what ``tf.nn.lrn`` computes; that has no CPU kernel for bfloat16, and its gradient
    is a scalar loop. It is not batch normalisation: it keeps no statistics, and does the same in
    training and inference.

    Parameters
    ----------
    depth_radius : int
    bias, alpha, beta : float
    """

    def __init__(
        self, depth_radius: int, bias: float, alpha: float, beta: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.depth_radius, self.bias, self.alpha, self.beta = depth_radius, bias, alpha, beta

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Lay out the band: 1 where two channels are neighbours."""
        channels = np.arange(input_shape[-1] or 0)
        distance = np.abs(channels[:, None] - channels)
        self.band = (distance <= self.depth_radius).astype(np.float32)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise images of shape (n, height, width, channels)."""
        # Constants must stay Python values here: a gradient function may not capture variables.
        band = tf.constant(self.band, inputs.dtype)
        bias, alpha, beta = self.bias, self.alpha, self.beta

        def sum_over_neighbours(values: tf.Tensor) -> tf.Tensor:
            flat = tf.matmul(tf.reshape(values, (-1, band.shape[0])), band)
            # float32: next to the bias, alpha is too small for bfloat16.
            return tf.reshape(tf.cast(flat, tf.float32), tf.shape(values))

        @tf.custom_gradient
        def normalise(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
            scale = bias + alpha * sum_over_neighbours(tf.square(x))
            factor = tf.cast(_inverse_power(scale, beta), x.dtype)
            y = x * factor

            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                shared = upstream * y / tf.cast(scale, x.dtype)
                across = tf.cast(2 * alpha * beta * sum_over_neighbours(shared), x.dtype)
                return upstream * factor - x * across

            return y, gradient

        return normalise(inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape unchanged."""
        return input_shape


def _inverse_power(values: tf.Tensor, exponent: float) -> tf.Tensor:
    """Return ``values**-exponent``; by square roots for AlexNet's, several times faster."""
    if exponent == ALEXNET_BETA:
        root = tf.math.rsqrt(values)
        return root * tf.sqrt(root)
    return tf.pow(values, -exponent)


def build(description: Description, *, seed: int = 0, precision: str = "float32") -> keras.Model:
    """Build a variant's network, freshly initialised.

    Parameters
    ----------
    description : Description
    seed : int
        Of weights and dropout; each layer derives its own from it.
    precision : {"float32", "mixed_bfloat16", "bfloat16"}
        Keras dtype policy of all layers but the logits, which are float32.

    Returns
    -------
    keras.Model
        From uint8 images (n, height, width, channels) to float32 logits (n, classes).

    Raises
    ------
    ModelError
        If the layers do not fit the images.
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
            kernel_initializer=_initializer(description.network.initializer, layer_seed),
            dtype="float32" if place is placed[-1] else policy,
        )(x)
    return keras.Model(inputs, x, name=description.variant)


class LoadedModel(NamedTuple):
    """A network for inference, and its description."""

    network: keras.Model
    description: Description


def build_for_inference(description: Description, precision: str) -> LoadedModel:
    """Build a network that will not learn: its weights are of the type that it computes in.

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
        Conv2D,
        layer.filters,
        layer.kernel,
        strides=layer.stride,
        padding=layer.padding,
    )


def _plain_layer(
    layer: Pool | LocalResponseNorm | Dropout, seed: int
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
                LocalResponseNormalization, layer.depth_radius, layer.bias, layer.alpha, layer.beta
            )
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


def _weights(network: keras.Model) -> dict[str, keras.Variable]:
    return {weight.path: weight for weight in network.trainable_variables}


def trained_seeds(folder: Path) -> list[int]:
    """Return the seeds of the models in a variant's folder, in order.

    Raises
    ------
    ModelError
        If there is no model.
    """
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    seeds = sorted(int(match[1]) for match in map(SEED_FILE.fullmatch, names) if match)
    if not seeds:
        raise ModelError(f"{folder}: expected models, seed_<number>.safetensors; train the variant")
    return seeds


def remove_all(folder: Path) -> None:
    """Remove a variant's models, so that none of an earlier training stays beside the new ones."""
    with suppress(ModelError):
        for seed in trained_seeds(folder):
            (folder / f"seed_{seed}.safetensors").unlink()


def save(path: Path, network: keras.Model, description: Description) -> None:
    """Write weights and description to `path`; the same ones give the same bytes.

    Raises
    ------
    OutputError
        If the file cannot be written.
    """
    weights = {name: np.asarray(weight) for name, weight in _weights(network).items()}
    # One key: safetensors does not keep the order of several.
    header = {HEADER_KEY: description.model_dump_json()}
    content = safetensors.numpy.save(weights, metadata=header)
    with whole_file(path) as file:
        file.write(content)


def load(path: Path, precision: str = "float32") -> LoadedModel:
    """Read a model file, for inference.

    Parameters
    ----------
    path : Path
    precision : {"float32", "mixed_bfloat16"}
        See `build_for_inference`.

    Raises
    ------
    ModelError
        If the file is missing or corrupt, or is not one that `save` wrote.
    """
    remedy = "train it again"
    try:
        with safetensors.safe_open(path, "numpy") as file:
            header = (file.metadata() or {}).get(HEADER_KEY)
            if header is None:
                raise ModelError(f"{path}: has no {HEADER_KEY!r} header: is it another project's?")
            description = Description.model_validate(json.loads(header))
            if description.parameters * FLOAT32_BYTES > path.stat().st_size:  # or too much to hold
                raise ModelError(f"{path}: is too short for its {description.parameters:,} weights")
            loaded = build_for_inference(description, precision)
            weights = _weights(loaded.network)
            if set(file.keys()) != set(weights):
                raise ModelError(f"{path}: its weights are not those of its layers; {remedy}")
            for name, weight in weights.items():
                array = file.get_tensor(name)
                if array.shape != tuple(weight.shape) or array.dtype != np.float32:
                    raise ModelError(
                        f"{path}: {name}: expected float32 of shape {tuple(weight.shape)}, "
                        f"received {array.dtype} of shape {array.shape}; {remedy}"
                    )
                weight.assign(array)
    except (OSError, safetensors.SafetensorError) as error:
        raise ModelError(f"{path}: cannot be read as a model ({error}); {remedy}") from error
    except (ValidationError, ValueError) as error:
        reason = one_line(error)
        raise ModelError(f"{path}: its description is damaged ({reason}); {remedy}") from error
    return loaded
