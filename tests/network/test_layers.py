from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from pipeline.core.errors import ModelError
from pipeline.core.params import Params
from pipeline.network.layers import Initializer, Network, Shape, place_layers
from tests.helpers import ROOT, run_python
from tests.network.helpers import PARAMETERS, SHAPES, network, variant

MNIST = Shape(28, 28, 1)


@pytest.mark.parametrize("name", SHAPES)
def test_output_shapes_are_pinned(name: str) -> None:
    """Each layer of each variant has the pinned output shape."""
    placed = place_layers(variant(name), MNIST, 10)
    assert {layer.name: tuple(layer.shape) for layer in placed} == SHAPES[name]


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameter_counts_are_pinned(name: str) -> None:
    """Each variant has the published number of parameters for 10 classes."""
    placed = place_layers(variant(name), MNIST, 10)
    assert sum(layer.parameters for layer in placed) == PARAMETERS[name]


def test_every_variant_is_pinned() -> None:
    """Every variant in params.yaml has its shapes and parameters pinned."""
    assert set(Params(ROOT / "params.yaml").content["variants"]) == set(PARAMETERS) == set(SHAPES)


CONV = {"type": "conv", "filters": 4, "kernel": 5, "padding": "valid"}
POOL = {"type": "max_pool", "size": 3, "stride": 2, "padding": "valid"}
DENSE = {"type": "dense", "units": 3}
LRN = {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75}


def test_a_kernel_that_leaves_no_pixel_is_rejected() -> None:
    """A kernel that leaves less than one pixel is rejected by the name of its layer."""
    with pytest.raises(ModelError, match=r"layer conv2: a conv of 5×5 leaves less .* a 4×4 image"):
        place_layers(network(CONV, CONV), Shape(8, 8, 1), 10)


def test_a_pool_that_leaves_no_pixel_is_rejected() -> None:
    """A pool that leaves less than one pixel is rejected by the name of its layer."""
    with pytest.raises(ModelError, match=r"layer pool1_2: a max_pool of 3×3 leaves less"):
        place_layers(network(CONV, POOL, POOL), Shape(8, 8, 1), 10)


@pytest.mark.parametrize(
    ("layer", "name"), [(CONV, "conv2: conv"), (POOL, "pool1: max_pool"), (LRN, "lrn1: lrn")]
)
def test_an_image_layer_after_a_dense_one_is_rejected(layer: dict[str, Any], name: str) -> None:
    """A layer that needs an image cannot follow a dense one."""
    with pytest.raises(ModelError, match=f"layer {name} needs an image"):
        place_layers(network(DENSE, layer), MNIST, 10)


@pytest.mark.parametrize(
    ("kind", "content"),
    [
        (Initializer, {"type": "normal"}),
        (Initializer, {"type": "he_normal", "stddev": 0.1}),
        (Initializer, {"type": "normal", "stddev": 0.0}),
        (Network, {"input_size": 0, "initializer": {"type": "he_normal"}, "layers": []}),
        (Network, {"input_size": None, "initializer": {"type": "he_normal"}, "layers": [{}]}),
        *(
            (Network, {"input_size": None, "initializer": {"type": "he_normal"}, "layers": [layer]})
            for layer in (
                CONV | {"filters": 0}, CONV | {"kernel": -1}, CONV | {"stride": 0},
                CONV | {"padding": "full"}, CONV | {"activation": "gelu"}, POOL | {"size": 0},
                DENSE | {"units": 0}, DENSE | {"unit": 3}, LRN | {"depth_radius": 0},
                {"type": "dropout", "rate": 1.0}, {"type": "dropout", "rate": -0.1},
            )
        ),
    ],
)  # fmt: skip
def test_nonsense_is_rejected(kind: type, content: dict[str, Any]) -> None:
    """Zero, negative, missing, unknown or contradictory values are rejected."""
    with pytest.raises(ValidationError):
        TypeAdapter(kind).validate_python(content, strict=True)


def test_layers_are_checked_without_tensorflow() -> None:
    """Layers can be placed, and so rejected, before TensorFlow is loaded."""
    code = """
import sys
from pipeline.network import chunks, layers
print(sorted({"keras", "tensorflow"} & set(sys.modules)))
"""
    assert run_python(code) == "[]\n"
