"""The networks of params.yaml, with their published shapes and sizes, and small ones for tests."""

from typing import Any

from pipeline.core.params import Params
from pipeline.network.build import Description, LoadedModel, build_for_inference
from pipeline.network.layers import Network
from pipeline.training.recipe import Variant
from tests.helpers import ROOT

PARAMETERS = {
    "alexnet_norm": 7_709_386,
    "alexnet_dropout": 4_412_810,
    "lenet5": 61_706,
    "alexnet_2012": 58_299_082,
    "deotte": 326_410,
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
    "deotte": {
        "conv1": (26, 26, 32), "norm1": (26, 26, 32), "conv2": (24, 24, 32), "norm2": (24, 24, 32),
        "conv3": (12, 12, 32), "norm3": (12, 12, 32), "dropout3": (12, 12, 32),
        "conv4": (10, 10, 64), "norm4": (10, 10, 64), "conv5": (8, 8, 64), "norm5": (8, 8, 64),
        "conv6": (4, 4, 64), "norm6": (4, 4, 64), "dropout6": (4, 4, 64),
        "conv7": (1, 1, 128), "norm7": (1, 1, 128), "dropout7": (1, 1, 128), "fc8": (1, 1, 10),
    },
}  # fmt: skip


def variant(name: str) -> Variant:
    """Return a variant of params.yaml."""
    row: Variant = Params(ROOT / "params.yaml").get(f"variants.{name}", Variant)
    return row


def network(*layers: dict[str, Any], input_size: int | None = None) -> Network:
    """Return a network of some layers."""
    return Network.model_validate(
        {"input_size": input_size, "initializer": {"type": "he_normal"}, "layers": list(layers)}
    )


def describe(
    row: Network, shape: tuple[int, int, int] = (28, 28, 1), classes: int = 10
) -> Description:
    """Return the description of a network for images of a shape."""
    return Description(
        dataset="mnist", variant="some", image_shape=list(shape), classes=classes, network=row
    )


def described(name: str) -> Description:
    """Return the description of a variant of params.yaml for MNIST's images."""
    return describe(variant(name).network())


def loaded(name: str, precision: str = "float32") -> LoadedModel:
    """Return a variant of params.yaml for inference, with initial weights."""
    return build_for_inference(described(name), precision)
