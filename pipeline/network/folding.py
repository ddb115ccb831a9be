"""Batch norms folded away: what they do in inference is a scale and a shift of each channel.

A model file has no batch norm, so evaluation and export need not know of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.network.build import Description
from pipeline.network.framework import keras
from pipeline.network.layers import Affine, BatchNorm, Conv, Dense, Layer

Weights = dict[str, NDArray[Any]]  # float32


def fold_layers(layers: Sequence[Layer]) -> list[Layer]:
    """Return the layers of the network for inference.

    A batch norm that follows a linear convolution or dense layer becomes a part of it, any other
    one an `Affine` layer.
    """
    folded: list[Layer] = []
    for layer in layers:
        if not isinstance(layer, BatchNorm):
            folded.append(layer)
        elif folded and _takes_norm(folded[-1]):
            folded[-1] = folded[-1].model_copy(update={"activation": layer.activation})
        else:
            folded.append(Affine(type="affine", activation=layer.activation))
    return folded


def _takes_norm(layer: Layer) -> bool:
    return isinstance(layer, Conv | Dense) and layer.activation == "linear"


def fold_description(description: Description) -> Description:
    """Return the description of the network for inference."""
    layers = fold_layers(description.network.layers)
    network = description.network.model_copy(update={"layers": layers})
    return description.model_copy(update={"network": network})


def fold(network: keras.Model, description: Description) -> tuple[Description, Weights]:
    """Return the network for inference: its description, and its weights by path.

    With a batch norm's scale ``s = gamma / sqrt(variance + epsilon)`` and its shift
    ``t = beta - mean * s``, a layer ``W x + b`` in front of it becomes ``(s * W) x + (s * b + t)``.
    """
    folded = fold_description(description)
    weights: list[Weights] = []
    layers: list[Layer] = []
    for place in description.place_layers():
        own = {each.name: np.asarray(each) for each in network.get_layer(place.name).weights}
        layers = fold_layers([*layers, place.layer])
        if not isinstance(place.layer, BatchNorm):
            weights.append(own)
            continue
        scale = own["gamma"] / np.sqrt(own["variance"] + np.float32(place.layer.epsilon))
        shift = own["beta"] - own["mean"] * scale
        if len(layers) > len(weights):
            weights.append({"scale": scale, "shift": shift})
        else:
            before = weights[-1]
            bias = before.get("bias", np.float32(0)) * scale + shift
            weights[-1] = {"kernel": before["kernel"] * scale, "bias": bias}
    return folded, {
        f"{place.name}/{name}": array
        for place, own in zip(folded.place_layers(), weights, strict=True)
        for name, array in own.items()
    }
