import json
import shutil
from pathlib import Path

import keras
import numpy as np
import pytest
import safetensors.numpy
import tensorflow as tf

from pipeline import model
from pipeline.errors import ModelError
from pipeline.model import Description, LocalResponseNormalization
from pipeline.params import Params
from pipeline.variants import Network, Variant
from tests.conftest import ROOT
from tests.test_variants import PARAMETERS, SHAPES, network


def describe(row: Network, shape: tuple[int, int, int] = (28, 28, 1)) -> Description:
    return Description(
        dataset="mnist", variant="some", image_shape=list(shape), classes=10, network=row
    )


def described(name: str) -> Description:
    row: Variant = Params(ROOT / "params.yaml").get(f"variants.{name}", Variant)
    return describe(row.network())


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)


@pytest.mark.parametrize("name", SHAPES)
def test_keras_layers_have_the_pinned_shapes_and_parameters(name: str) -> None:
    """Keras builds each layer with the shape and parameters that plain arithmetic foretells."""
    description = described(name)
    built = model.build(description)
    assert built.count_params() == PARAMETERS[name]
    for place in description.place_layers():
        layer = built.get_layer(place.name)
        shape = layer.output.shape[1:]
        assert shape == (place.shape if len(shape) == 3 else place.shape[2:])
        assert layer.count_params() == place.parameters


def test_a_model_takes_bytes_and_gives_float32_logits(images: np.ndarray) -> None:
    """A model takes uint8 images and gives float32 logits, in bfloat16 too."""
    for precision in ("float32", "mixed_bfloat16"):
        logits = model.build(described("lenet5"), precision=precision)(images)
        assert logits.shape == (4, 10)
        assert logits.dtype == tf.float32


def test_a_network_computes_what_its_rows_say(images: np.ndarray) -> None:
    """Convolution, bias and ReLU, then the pool: the rows of the table, one after another."""
    built = model.build(described("alexnet_dropout"))
    x = tf.cast(images, tf.float32) / 255
    for layer in described("alexnet_dropout").place_layers():
        kind = layer.layer.type
        if kind == "conv":
            x = tf.nn.relu(built.get_layer(layer.name).convolution_op(
                x, built.get_layer(layer.name).kernel) + built.get_layer(layer.name).bias)  # fmt: skip
        elif kind == "max_pool":
            x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        elif kind == "dense":
            x = tf.reshape(x, (4, -1))
            x = built.get_layer(layer.name)(x)
    np.testing.assert_allclose(built(images), x, rtol=1e-4, atol=1e-4)


def test_the_seed_alone_decides_the_weights() -> None:
    """The same seed begins with the same weights, another one with others."""
    first, again, other = (
        model.build(described("lenet5"), seed=seed).get_weights() for seed in (1, 1, 2)
    )
    for one, two in zip(first, again, strict=True):
        np.testing.assert_array_equal(one, two)
    assert not np.array_equal(first[0], other[0])


@pytest.mark.parametrize(
    ("initializer", "deviation"),
    [
        ({"type": "normal", "stddev": 1.0}, 1.0),
        ({"type": "truncated_normal", "stddev": 0.1}, 0.1 * 0.88),
        ({"type": "he_normal"}, (2 / 784) ** 0.5),
        ({"type": "glorot_uniform"}, (2 / (784 + 500)) ** 0.5),
    ],
)
def test_initialisers_have_their_deviation(
    initializer: dict[str, object], deviation: float
) -> None:
    """Each initialiser spreads weights as it says, the article's originals too."""
    row = Network.model_validate(
        network({"type": "dense", "units": 500}).model_dump() | {"initializer": initializer}
    )
    kernel, bias = model.build(describe(row)).get_layer("fc1").get_weights()
    assert kernel.std() == pytest.approx(deviation, rel=0.02)
    assert not bias.any()


class TestLocalResponseNormalization:
    """It computes what TensorFlow's operation computes."""

    x = np.random.default_rng(0).normal(0, 20, (2, 3, 3, 24)).astype(np.float32)

    def test_output_is_tensorflows(self) -> None:
        """Its output is that of tf.nn.lrn."""
        ours = LocalResponseNormalization(4, 1.0, 0.001 / 9, 0.75)(self.x)
        theirs = tf.nn.lrn(self.x, 4, 1.0, 0.001 / 9, 0.75)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_gradient_is_tensorflows(self) -> None:
        """Its gradient is that of tf.nn.lrn."""
        x = tf.constant(self.x)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            ours = tf.reduce_sum(LocalResponseNormalization(2, 2.0, 1e-3, 0.75)(x) ** 3)
            theirs = tf.reduce_sum(tf.nn.lrn(x, 2, 2.0, 1e-3, 0.75) ** 3)
        expected = tape.gradient(theirs, x)
        np.testing.assert_allclose(tape.gradient(ours, x), expected, rtol=1e-4, atol=1e-2)

    def test_bfloat16_stays_near_float32(self) -> None:
        """In bfloat16 the result stays within its rounding of float32's."""
        plain = LocalResponseNormalization(4, 1.0, 0.001 / 9, 0.75)(self.x)
        short = LocalResponseNormalization(4, 1.0, 0.001 / 9, 0.75, dtype="mixed_bfloat16")(
            tf.cast(self.x, tf.bfloat16)
        )
        assert short.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(short, tf.float32), plain, rtol=0.02, atol=1e-3)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    description = described("lenet5")
    path = tmp_path / "model.safetensors"
    model.save(path, model.build(description, seed=3), description)
    return path


def test_a_model_is_loaded_as_it_was_saved(saved: Path, images: np.ndarray) -> None:
    """A loaded model gives the logits of the saved one, and knows what it is."""
    loaded = model.load(saved)
    assert loaded.description == described("lenet5")
    np.testing.assert_array_equal(
        loaded.network(images), model.build(described("lenet5"), seed=3)(images)
    )


def test_a_model_is_loaded_in_the_type_that_it_computes_in(
    tmp_path: Path, images: np.ndarray
) -> None:
    """Loaded for bfloat16, weights are bfloat16 but for the last layer's; logits stay the same."""
    description = described("alexnet_dropout")
    trained = model.build(description, precision="mixed_bfloat16")
    model.save(tmp_path / "model", trained, description)
    network = model.load(tmp_path / "model", "mixed_bfloat16").network
    dtypes = {weight.path.split("/")[0]: weight.dtype for weight in network.weights}
    last = description.place_layers()[-1].name
    assert dtypes.pop(last) == "float32"
    assert set(dtypes.values()) == {"bfloat16"}
    np.testing.assert_array_equal(network(images), trained(images))


def test_the_same_model_is_saved_as_the_same_bytes(saved: Path, tmp_path: Path) -> None:
    """Saving a model twice gives the same bytes."""
    loaded = model.load(saved)
    model.save(tmp_path / "again", loaded.network, loaded.description)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_a_model_of_bfloat16_keeps_float32_weights(tmp_path: Path) -> None:
    """Weights are float32 in the file, in whatever precision the model computed."""
    description = described("lenet5")
    path = tmp_path / "model"
    model.save(path, model.build(description, precision="mixed_bfloat16"), description)
    weights = safetensors.numpy.load_file(path)
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert "conv1/kernel" in weights


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_model_is_refused(saved: Path, keep: int) -> None:
    """A model file that is cut short is refused, with the remedy."""
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cannot be read as a model .* train it again"):
        model.load(saved)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """A missing model file is named."""
    with pytest.raises(ModelError, match="none: cannot be read as a model"):
        model.load(tmp_path / "none")


def test_a_pickle_is_refused(tmp_path: Path) -> None:
    """A file of another format is refused, and nothing in it is run."""
    shutil.copy(ROOT / "params.yaml", tmp_path / "model")
    with pytest.raises(ModelError, match="cannot be read as a model"):
        model.load(tmp_path / "model")


def rewrite(path: Path, *, header: str | None = None, drop: str = "", reshape: str = "") -> None:
    """Save a model's weights again, with one thing wrong."""
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    weights = safetensors.numpy.load_file(path)
    weights.pop(drop, None)
    if reshape:
        weights[reshape] = weights[reshape].reshape(-1)
    metadata = {"alexnet_mnist": header} if header is not None else metadata
    path.write_bytes(safetensors.numpy.save(weights, metadata=metadata))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"header": "{"}, "its description is damaged"),
        ({"header": json.dumps({"dataset": "x"})}, "its description is damaged"),
        ({"drop": "conv1/bias"}, "its weights are not those of its layers"),
        ({"reshape": "conv1/kernel"}, "conv1/kernel: expected float32 of shape"),
    ],
)
def test_a_model_with_something_wrong_is_refused(
    saved: Path, wrong: dict[str, str], message: str
) -> None:
    """A damaged description, a missing weight or a wrong shape is refused, with the remedy."""
    rewrite(saved, **wrong)
    with pytest.raises(ModelError, match=message):
        model.load(saved)


def test_a_safetensors_file_of_another_project_is_refused(tmp_path: Path) -> None:
    """A safetensors file without this project's header is refused."""
    path = tmp_path / "other"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    with pytest.raises(ModelError, match="is it another project's"):
        model.load(path)


def test_dropout_is_active_in_training_only(images: np.ndarray) -> None:
    """Dropout changes the logits in training, and not in inference."""
    built = model.build(described("alexnet_dropout"))
    np.testing.assert_array_equal(built(images), built(images))
    assert not np.array_equal(built(images, training=True), built(images))
    assert isinstance(built.get_layer("dropout6"), keras.layers.Dropout)


def test_a_description_that_promises_more_than_the_file_holds_is_refused(saved: Path) -> None:
    """What would take terabytes is refused before anything is allocated."""
    with safetensors.safe_open(saved, "numpy") as file:
        description = json.loads(file.metadata()["alexnet_mnist"])
    description["network"]["layers"].append({"type": "dense", "units": 10**9, "activation": "relu"})
    rewrite(saved, header=json.dumps(description))
    with pytest.raises(ModelError, match="is too short for its [0-9,]+ weights"):
        model.load(saved)
