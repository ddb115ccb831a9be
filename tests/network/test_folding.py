from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import safetensors.numpy
from pydantic import TypeAdapter

from pipeline.network import storage
from pipeline.network.build import Description, build
from pipeline.network.folding import fold_description, fold_layers
from pipeline.network.layers import Layer
from tests.helpers import CLASSES, SIDE, make_images
from tests.network.helpers import SHAPES, describe, described, network

CONV = {"type": "conv", "filters": 6, "kernel": 3}
DENSE = {"type": "dense", "units": 16}
LINEAR = {"activation": "linear"}
NORM = {"type": "batch_norm"}
POOL = {"type": "max_pool", "size": 2, "stride": 2}
DROPOUT = {"type": "dropout", "rate": 0.2}


def affine(activation: str = "relu") -> dict[str, Any]:
    return {"type": "affine", "activation": activation}


NETWORKS: dict[str, list[dict[str, Any]]] = {
    "after a linear convolution": [CONV | LINEAR, NORM, POOL],
    "after a linear dense layer": [DENSE | LINEAR, NORM],
    "after a convolution with ReLU": [CONV, NORM | LINEAR, POOL],
    "after a dense layer with tanh": [DENSE | {"activation": "tanh"}, NORM],
    "two in a row": [CONV | LINEAR, NORM | LINEAR, NORM, DENSE],
    "two in a row after ReLU": [CONV, NORM, NORM | LINEAR, DENSE],
    "the first layer": [NORM | LINEAR, CONV, DENSE],
    "after a pool": [CONV | LINEAR, POOL, NORM, DENSE],
    "after dropout": [CONV | LINEAR, DROPOUT, NORM],
    "the last layer": [DENSE, DENSE | LINEAR, NORM | {"activation": "tanh"}],
    "every kind": [
        NORM | LINEAR, CONV | LINEAR | {"padding": "valid"}, NORM, CONV | {"stride": 2}, NORM,
        DROPOUT, DENSE | LINEAR, NORM | {"epsilon": 0.1}, DENSE,
    ],
}  # fmt: skip


@pytest.mark.parametrize(
    ("layers", "folded"),
    [
        ([CONV, POOL, DENSE], [CONV, POOL, DENSE]),
        ([CONV | LINEAR, NORM], [CONV]),
        ([DENSE | LINEAR, NORM | {"activation": "tanh"}], [DENSE | {"activation": "tanh"}]),
        ([CONV | LINEAR, NORM | LINEAR], [CONV | LINEAR]),
        ([CONV, NORM], [CONV, affine()]),
        ([CONV | {"activation": "tanh"}, NORM], [CONV | {"activation": "tanh"}, affine()]),
        ([CONV | LINEAR, NORM | LINEAR, NORM], [CONV]),
        ([CONV | LINEAR, NORM, NORM], [CONV, affine()]),
        ([NORM, NORM | LINEAR], [affine(), affine("linear")]),
        ([CONV | LINEAR, POOL, NORM], [CONV | LINEAR, POOL, affine()]),
        ([CONV | LINEAR, DROPOUT, NORM], [CONV | LINEAR, DROPOUT, affine()]),
        ([], []),
    ],
)
def test_a_batch_norm_becomes_a_part_of_the_layer_before_it(
    layers: list[dict[str, Any]], folded: list[dict[str, Any]]
) -> None:
    """After a linear weight layer it becomes a part of it, anywhere else a scale and a shift."""
    kind: TypeAdapter[list[Layer]] = TypeAdapter(list[Layer])
    assert fold_layers(kind.validate_python(layers)) == kind.validate_python(folded)


@pytest.mark.parametrize("name", SHAPES)
def test_folded_networks_of_params_have_no_batch_norm(name: str) -> None:
    """No variant has a batch norm once it is folded; without one it stays as it is."""
    description = described(name)
    folded = fold_description(description)
    kinds = {layer.type for layer in folded.network.layers}
    assert "batch_norm" not in kinds
    assert (folded == description) == (name != "deotte")
    assert ("affine" in kinds) == (name == "deotte")


def trained(layers: list[dict[str, Any]], precision: str) -> tuple[keras.Model, Description]:
    """Return a network whose weights and running means are as if it had been trained."""
    description = describe(network(*layers), (SIDE, SIDE, 1), CLASSES)
    built = build(description, seed=1, precision=precision)
    built(make_images(8).images, training=True)
    random = np.random.default_rng(0)
    for weight in built.weights:
        drawn = random.normal(0, 0.3, weight.shape)
        if weight.name in ("gamma", "variance"):
            drawn = random.uniform(0.3, 2, weight.shape) * random.choice([-1, 1], weight.shape)
        weight.assign(np.abs(drawn) if weight.name == "variance" else drawn)
    return built, description


@pytest.mark.parametrize("name", NETWORKS)
def test_a_loaded_network_gives_the_logits_of_the_trained_one(tmp_path: Path, name: str) -> None:
    """Folded, saved and loaded, a network gives the logits that it gives in inference."""
    built, description = trained(NETWORKS[name], "float32")
    storage.save(tmp_path / "model", built, description)
    loaded = storage.load(tmp_path / "model")
    images = make_images(60, seed=3).images
    expected = built(images, training=False).numpy()
    assert expected.std() > 0.1
    np.testing.assert_allclose(loaded.network(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_in_bfloat16_it_is_as_close_as_rounding_allows(tmp_path: Path, name: str) -> None:
    """In bfloat16 the loaded network is as close to float32 as the trained one, and agrees with it."""
    built, description = trained(NETWORKS[name], "mixed_bfloat16")
    exact, _ = trained(NETWORKS[name], "float32")
    storage.save(tmp_path / "model", built, description)
    loaded = storage.load(tmp_path / "model", "mixed_bfloat16")
    images = make_images(300, seed=3).images
    truth = exact(images, training=False).numpy()
    logits, expected = loaded.network(images).numpy(), built(images, training=False).numpy()
    spread = truth.std()
    assert np.abs(expected - truth).mean() < 0.05 * spread
    assert np.abs(logits - truth).mean() < 0.05 * spread
    assert (logits.argmax(axis=1) == expected.argmax(axis=1)).mean() >= 0.99


@pytest.mark.parametrize("name", NETWORKS)
def test_a_model_file_has_no_batch_norm(tmp_path: Path, name: str) -> None:
    """Neither the description nor the weights of a model file know of a batch norm."""
    built, description = trained(NETWORKS[name], "float32")
    storage.save(tmp_path / "model", built, description)
    saved = storage.load(tmp_path / "model").description
    assert "batch_norm" not in {layer.type for layer in saved.network.layers}
    weights = safetensors.numpy.load_file(tmp_path / "model")
    kinds = {path.rpartition("/")[2] for path in weights}
    assert kinds <= {"kernel", "bias", "scale", "shift"}
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert sum(array.size for array in weights.values()) == saved.parameters


def test_nothing_else_of_the_description_changes(tmp_path: Path) -> None:
    """Names, temperature and shapes are kept; saved again, the folded network has the same bytes."""
    built, description = trained(NETWORKS["every kind"], "float32")
    full = description.model_copy(update={"class_names": ["a", "b", "c"], "temperature": 2.5})
    storage.save(tmp_path / "model", built, full)
    loaded = storage.load(tmp_path / "model")
    kept = set(Description.model_fields) - {"network"}
    assert loaded.description.model_dump(include=kept) == full.model_dump(include=kept)
    storage.save(tmp_path / "again", *loaded)
    assert (tmp_path / "again").read_bytes() == (tmp_path / "model").read_bytes()
