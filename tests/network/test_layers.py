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


def test_every_list_of_layers_is_pinned() -> None:
    """Every list of layers in params.yaml has its shapes and parameters pinned, and once."""
    names = Params(ROOT / "params.yaml").content["variants"]
    lists = [[variant(name).input_size, *variant(name).layers] for name in names]
    pinned = [[variant(name).input_size, *variant(name).layers] for name in SHAPES]
    assert all(each in pinned for each in lists)
    assert all(pinned.count(each) == 1 for each in pinned)
    assert set(PARAMETERS) == set(SHAPES) <= set(names)


CONV = {"type": "conv", "filters": 4, "kernel": 5, "padding": "valid"}
POOL = {"type": "max_pool", "size": 3, "stride": 2, "padding": "valid"}
DENSE = {"type": "dense", "units": 3}
LRN = {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75}
NORM = {"type": "batch_norm"}
LINEAR = {"activation": "linear"}


@pytest.mark.parametrize(
    ("layers", "parameters"),
    [
        ([CONV], [4 * 25 + 4]),
        ([CONV, NORM], [4 * 25 + 4, 8]),
        ([CONV | LINEAR, NORM], [4 * 25, 8]),
        ([CONV | LINEAR, POOL, NORM], [4 * 25 + 4, 0, 8]),
        ([DENSE | LINEAR, NORM], [3 * 784, 6]),
        ([DENSE | LINEAR, NORM, NORM], [3 * 784, 6, 6]),
        ([NORM, DENSE], [2, 3 * 784 + 3]),
        ([CONV, {"type": "affine", "activation": "relu"}], [4 * 25 + 4, 8]),
    ],
)
def test_a_linear_layer_before_a_batch_norm_has_no_bias(
    layers: list[dict[str, Any]], parameters: list[int]
) -> None:
    """A bias that a batch norm would subtract at once is left out, and no other one."""
    placed = place_layers(network(*layers), MNIST, 10)[:-1]
    assert [place.parameters for place in placed] == parameters


def test_batch_norms_are_named_after_their_weight_layer() -> None:
    """A batch norm has the number of the weight layer before it; a second one is told apart."""
    placed = place_layers(network(NORM, CONV, NORM, NORM, DENSE, NORM), MNIST, 10)
    assert [place.name for place in placed] == [
        "norm0", "conv1", "norm1", "norm1_2", "fc2", "norm2", "fc3",
    ]  # fmt: skip


def test_only_weight_layers_multiply() -> None:
    """A convolution multiplies once for each weight and place, a dense layer once for each weight."""
    placed = place_layers(network(CONV, POOL, NORM, CONV | LINEAR, NORM, DENSE), MNIST, 10)
    assert [place.multiply_adds for place in placed] == [
        24 * 24 * 25 * 4, 0, 0, 7 * 7 * 25 * 4 * 4, 0, 7 * 7 * 4 * 3, 3 * 10,
    ]  # fmt: skip


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
                NORM | {"momentum": 1.0}, NORM | {"momentum": -0.1}, NORM | {"epsilon": 0.0},
                NORM | {"activation": "gelu"}, NORM | {"axis": 1}, {"type": "affine"},
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
