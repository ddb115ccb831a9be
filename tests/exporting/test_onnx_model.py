import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax

from pipeline.core.errors import ModelError
from pipeline.exporting.onnx_model import OnnxRuntime, _scale, make_onnx, save_onnx
from pipeline.network.build import Description, LoadedModel, build
from pipeline.network.layers import Network
from tests.helpers import run_python
from tests.network.helpers import PARAMETERS, describe, described, network

TOLERANCE = 1e-4
CONV: dict[str, Any] = {"type": "conv", "filters": 3, "kernel": 3}
LRN: dict[str, Any] = {"type": "lrn", "depth_radius": 2, "bias": 1.0, "alpha": 0.3, "beta": 0.75}
AFFINE: dict[str, Any] = {"type": "affine", "activation": "relu"}
DENSE: dict[str, Any] = {"type": "dense", "units": 7}


def initial(description: Description, seed: int = 1, noise: float = 0.1) -> LoadedModel:
    """Return a network in which no weight is at its neutral start: biases and shifts are not 0."""
    model = build(description, seed=seed)
    random = np.random.default_rng(seed)
    for weight in model.trainable_variables:
        moved = weight.numpy() + random.normal(0, noise, weight.shape)
        weight.assign(moved.astype(np.float32))
    return LoadedModel(model, description)


def random_images(description: Description, count: int = 5) -> np.ndarray:
    shape = (count, *description.image_shape)
    return np.random.default_rng(7).integers(0, 256, shape, np.uint8)


def converted(loaded: LoadedModel) -> onnx.ModelProto:
    weights = {each.path: each.numpy() for each in loaded.network.trainable_variables}
    return make_onnx(loaded.description, weights)


def assert_same_logits(description: Description, noise: float = 0.1) -> None:
    loaded = initial(description, noise=noise)
    images = random_images(description)
    received = OnnxRuntime(converted(loaded).SerializeToString()).logits(images)
    expected = loaded.network(images, training=False).numpy()
    assert received.dtype == np.float32
    assert expected.std() > 0.01
    np.testing.assert_allclose(received, expected, atol=TOLERANCE)


def conv(**more: Any) -> dict[str, Any]:
    return CONV | more


def pool(kind: str, size: int, stride: int, padding: str) -> dict[str, Any]:
    return {"type": kind, "size": size, "stride": stride, "padding": padding}


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("kernel", [1, 2, 4, 5])
def test_a_convolution_is_the_same(kernel: int, stride: int, padding: str) -> None:
    """A convolution with odd and even kernels, any stride and padding, gives the same logits."""
    assert_same_logits(
        describe(network(conv(kernel=kernel, stride=stride, padding=padding)), (13, 16, 2), 4)
    )


@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize(("size", "stride"), [(2, 2), (3, 2), (3, 3), (2, 3), (2, 1)])
@pytest.mark.parametrize("kind", ["max_pool", "average_pool"])
def test_a_pool_is_the_same(kind: str, size: int, stride: int, padding: str) -> None:
    """Maxima and means over windows, also over an edge, give the same logits."""
    layers = [conv(activation="tanh"), pool(kind, size, stride, padding)]
    assert_same_logits(describe(network(*layers), (14, 11, 1), 4))


@pytest.mark.parametrize("activation", ["relu", "tanh", "linear"])
def test_activations_are_the_same(activation: str) -> None:
    """Each activation of each layer that has one gives the same logits."""
    layers = [
        conv(activation=activation),
        AFFINE | {"activation": activation},
        DENSE | {"activation": activation},
        AFFINE | {"activation": activation},
    ]
    assert_same_logits(describe(network(*layers), (9, 9, 3), 4))


@pytest.mark.parametrize("radius", [1, 2, 5])
def test_local_response_normalisation_is_the_same(radius: int) -> None:
    """Normalisation over neighbouring channels, at the edges too, gives the same logits."""
    layers = [conv(filters=6), LRN | {"depth_radius": radius, "bias": 2.0}]
    assert_same_logits(describe(network(*layers), (9, 9, 1), 4))


@pytest.mark.parametrize("side", [5, 12, 17, 28, 40])
def test_images_are_resized_the_same(side: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Images that the network makes smaller or larger give the same logits, without a warning."""
    assert_same_logits(describe(network(conv(), DENSE, input_size=side), (12, 17, 3), 4))
    assert "onnxruntime" not in capfd.readouterr().err


@pytest.mark.parametrize("before", [1, 6, 12, 28, 41, 224])
def test_any_size_becomes_any_other(before: int) -> None:
    """The scale of an image gives exactly the wanted size, computed in float32 or float64."""
    for after in range(1, 260):
        scale = _scale(before, after)
        assert np.floor(np.float32(before) * scale) == after
        assert np.floor(before * float(scale)) == after
        assert scale == pytest.approx(after / before, rel=1e-6)


def test_layers_after_a_dense_one_are_the_same() -> None:
    """Affine layers and dropout after dense layers, and no layer at all, give the same logits."""
    dropout: dict[str, Any] = {"type": "dropout", "rate": 0.5}
    layers = [AFFINE, dropout, DENSE, AFFINE, dropout, DENSE]
    assert_same_logits(describe(network(*layers), (6, 5, 2), 3))
    assert_same_logits(describe(network(), (6, 5, 2), 3))


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [name for name in PARAMETERS if name not in ("deotte", "alexnet_2012")]
)
def test_the_projects_networks_are_the_same(name: str) -> None:
    """The networks of params.yaml give the same logits."""
    assert_same_logits(described(name), noise=0.01)


PADDINGS = st.sampled_from(["same", "valid"])
ACTIVATIONS = st.sampled_from(["relu", "tanh", "linear"])
IMAGE_LAYERS = st.one_of(
    st.builds(
        lambda kernel, stride, padding, activation: conv(
            kernel=kernel, stride=stride, padding=padding, activation=activation
        ),
        st.integers(1, 5), st.integers(1, 3), PADDINGS, ACTIVATIONS,
    ),
    st.builds(
        pool, st.sampled_from(["max_pool", "average_pool"]), st.integers(1, 4), st.integers(1, 3),
        PADDINGS,
    ),
    st.just(LRN),
    ACTIVATIONS.map(lambda activation: AFFINE | {"activation": activation}),
)  # fmt: skip
FLAT_LAYERS = ACTIVATIONS.map(lambda activation: DENSE | {"activation": activation})


@pytest.mark.slow
@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    st.lists(IMAGE_LAYERS, max_size=4), st.lists(FLAT_LAYERS, max_size=2),
    st.tuples(st.integers(5, 14), st.integers(5, 14), st.integers(1, 3)),
    st.one_of(st.none(), st.integers(4, 16)),
)  # fmt: skip
def test_any_network_is_the_same(
    front: list[dict[str, Any]],
    back: list[dict[str, Any]],
    shape: tuple[int, int, int],
    side: int | None,
) -> None:
    """Any network that can be built gives the same logits."""
    row: Network = network(*front, *back, input_size=side)
    description = describe(row, shape, 3)
    try:
        description.place_layers()
    except ModelError:
        return
    loaded = initial(description)
    images = random_images(description)
    received = OnnxRuntime(converted(loaded).SerializeToString()).logits(images)
    expected = loaded.network(images, training=False).numpy()
    np.testing.assert_allclose(received, expected, atol=TOLERANCE, rtol=1e-5)


@pytest.mark.parametrize("temperature", [0.25, 1.0, 3.5])
def test_probabilities_are_calibrated(temperature: float) -> None:
    """Probabilities equal SciPy's softmax of the logits divided by the temperature."""
    description = describe(network(conv(), DENSE), (9, 9, 1), 5)
    loaded = initial(description.model_copy(update={"temperature": temperature}))
    session = onnxruntime.InferenceSession(
        converted(loaded).SerializeToString(), providers=["CPUExecutionProvider"]
    )
    images = random_images(description)
    logits, probabilities = session.run(["logits", "probabilities"], {"images": images})
    expected = softmax(logits.astype(float) / temperature, axis=1)
    np.testing.assert_allclose(probabilities, expected, atol=1e-6)


@pytest.mark.parametrize("names", [None, ["cat", "Ösen", '"'], ["0", "1", "2"]])
def test_the_file_describes_itself(tmp_path: Path, names: list[str] | None) -> None:
    """Metadata has the data set, the classes' names and the temperature; inputs have names."""
    description = describe(network(DENSE), (6, 5, 2), 3).model_copy(
        update={"class_names": names, "temperature": 1.25}
    )
    path = tmp_path / "new" / "model.onnx"
    save_onnx(path, converted(initial(description)))
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    assert json.loads(metadata["classes"]) == (names or ["0", "1", "2"])
    assert metadata["dataset"] == "mnist"
    assert float(metadata["temperature"]) == 1.25
    [given] = session.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["n", 6, 5, 2])
    assert [(each.name, each.shape) for each in session.get_outputs()] == [
        ("logits", ["n", 3]), ("probabilities", ["n", 3]),
    ]  # fmt: skip


def test_any_number_of_images_is_answered() -> None:
    """One image, many, and none are answered."""
    description = describe(network(conv(), DENSE, input_size=7), (9, 9, 1), 5)
    runtime = OnnxRuntime(converted(initial(description)).SerializeToString())
    for count in (0, 1, 33):
        assert runtime.logits(random_images(description, count)).shape == (count, 5)


EXPORT = """
import sys, hashlib
from pathlib import Path
from tests.exporting.test_onnx_model import converted, initial
from tests.network.helpers import describe, network
from pipeline.exporting.onnx_model import save_onnx
row = network({"type": "conv", "filters": 3, "kernel": 3}, {"type": "dense", "units": 7})
save_onnx(Path(sys.argv[1]), converted(initial(describe(row, (9, 9, 1), 4))))
"""


@pytest.mark.slow
def test_two_exports_have_the_same_bytes(tmp_path: Path) -> None:
    """Two exports of a model, in two processes with other hash seeds, have the same bytes."""
    hashes = set()
    for seed in ("1", "2"):
        path = tmp_path / f"{seed}.onnx"
        run_python(EXPORT, str(path), PYTHONHASHSEED=seed)
        hashes.add(hashlib.sha256(path.read_bytes()).hexdigest())
    assert len(hashes) == 1
