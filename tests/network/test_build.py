import keras
import numpy as np
import pytest
import tensorflow as tf
from pydantic import ValidationError

from pipeline.core.errors import ModelError
from pipeline.network.build import Description, build, build_for_inference
from pipeline.network.layers import Network
from tests.network.helpers import PARAMETERS, SHAPES, describe, described, network


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)


def trained(layer: keras.layers.Layer) -> int:
    """Return the number of weights of a layer that are trained."""
    return sum(weight.numpy().size for weight in layer.trainable_variables)


@pytest.mark.parametrize("name", SHAPES)
def test_keras_layers_have_the_pinned_shapes_and_parameters(name: str) -> None:
    """Keras builds each layer with the shape and parameters that arithmetic predicts."""
    description = described(name)
    built = build(description)
    assert trained(built) == description.parameters == PARAMETERS[name]
    for place in description.place_layers():
        layer = built.get_layer(place.name)
        shape = layer.output.shape[1:]
        assert shape == (place.shape if len(shape) == 3 else place.shape[2:])
        assert trained(layer) == place.parameters


def test_a_network_other_than_described_is_rejected() -> None:
    """If Keras builds another number of weights than the layers have, nothing is trained."""
    description = described("alexnet_dropout")
    keras.config.set_image_data_format("channels_first")
    try:
        with pytest.raises(ModelError, match=r"Keras built [\d,]+ parameters, expected 4,412,810"):
            build(description)
    finally:
        keras.config.set_image_data_format("channels_last")


def test_a_network_takes_bytes_and_gives_float32_logits(images: np.ndarray) -> None:
    """A network maps uint8 images to float32 logits, in any precision."""
    for precision in ("float32", "mixed_bfloat16", "bfloat16"):
        logits = build(described("lenet5"), precision=precision)(images)
        assert logits.shape == (4, 10)
        assert logits.dtype == tf.float32


def test_a_network_computes_its_layers_in_order(images: np.ndarray) -> None:
    """The network's output is that of its listed layers, applied one after another."""
    built = build(described("alexnet_dropout"))
    x = tf.cast(images, tf.float32) / 255
    for layer in described("alexnet_dropout").place_layers():
        kind = layer.layer.type
        if kind == "conv":
            kernel, bias = built.get_layer(layer.name).weights
            x = tf.nn.relu(tf.nn.conv2d(x, kernel.value, 1, "SAME") + bias.value)
        elif kind == "max_pool":
            x = tf.nn.max_pool2d(x, 2, 2, "SAME")
        elif kind == "dense":
            kernel, bias = built.get_layer(layer.name).weights
            x = tf.reshape(x, (4, -1)) @ kernel.value + bias.value
            x = tf.nn.relu(x) if layer.name != "fc8" else x
    np.testing.assert_allclose(built(images), x, rtol=1e-4, atol=1e-4)


def test_images_are_resized_inside_the_network(images: np.ndarray) -> None:
    """With an input size, images are resized inside the network, and the first layer sees that."""
    row = network({"type": "conv", "filters": 2, "kernel": 3}, input_size=14)
    built = build(describe(row))
    assert built.get_layer("conv1").output.shape == (None, 14, 14, 2)
    resized = tf.image.resize(tf.cast(images, tf.float32) / 255, (14, 14))
    rows = built.get_layer("resize")(built.get_layer("scale")(images))
    np.testing.assert_allclose(rows, resized, atol=1e-6)


def test_the_seed_alone_decides_the_weights() -> None:
    """The same seed gives the same initial weights, and another seed others."""
    first, again, other = (
        build(described("lenet5"), seed=seed).get_weights() for seed in (1, 1, 2)
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
def test_initializers_have_their_deviation(
    initializer: dict[str, object], deviation: float
) -> None:
    """Each initializer spreads the weights as it says, those of the article included."""
    row = Network.model_validate(
        network({"type": "dense", "units": 500}).model_dump() | {"initializer": initializer}
    )
    kernel, bias = build(describe(row)).get_layer("fc1").get_weights()
    assert kernel.std() == pytest.approx(deviation, rel=0.02)
    assert not bias.any()


def test_dropout_is_active_in_training_only(images: np.ndarray) -> None:
    """Dropout changes the logits in training, but not in inference."""
    built = build(described("alexnet_dropout"))
    np.testing.assert_array_equal(built(images), built(images))
    assert not np.array_equal(built(images, training=True), built(images))
    assert isinstance(built.get_layer("dropout6"), keras.layers.Dropout)


def test_inference_weights_have_the_type_that_is_computed_in() -> None:
    """For inference in bfloat16 all weights are bfloat16, except the float32 classifier's."""
    description = described("alexnet_dropout")
    built = build_for_inference(description, "mixed_bfloat16").network
    dtypes = {weight.path.split("/")[0]: weight.dtype for weight in built.weights}
    assert dtypes.pop(description.place_layers()[-1].name) == "float32"
    assert set(dtypes.values()) == {"bfloat16"}
    full = build_for_inference(description, "float32").network
    assert {weight.dtype for weight in full.weights} == {"float32"}


def test_layers_that_do_not_fit_are_rejected() -> None:
    """A network whose layers do not fit the images is rejected before Keras builds it."""
    row = network({"type": "conv", "filters": 2, "kernel": 29, "padding": "valid"})
    with pytest.raises(ModelError, match="leaves less than one pixel of a 28×28 image"):
        build(describe(row))


def test_a_batch_norm_is_active_in_training(images: np.ndarray) -> None:
    """A batch norm takes the batch's own statistics in training, and running ones in inference."""
    norm = {"type": "batch_norm", "activation": "linear"}
    built = build(describe(network(norm)))
    inside = keras.Model(built.input, built.get_layer("norm0").output)
    np.testing.assert_allclose(inside(images), images / np.float32(255 * 1.001**0.5), rtol=1e-5)
    normal = inside(images, training=True).numpy()
    assert normal.mean() == pytest.approx(0, abs=1e-4)
    assert normal.std() == pytest.approx(1, abs=0.01)


def test_a_description_of_format_1_is_read() -> None:
    """A header from before classes had names and models a temperature has neither."""
    old = described("lenet5").model_dump(exclude={"class_names", "temperature"}) | {"format": 1}
    description = Description.model_validate(old)
    assert (description.class_names, description.temperature) == (None, 1.0)
    assert description.network == described("lenet5").network


@pytest.mark.parametrize(
    "wrong",
    [{"classes": 1}, {"image_shape": [28, 28]}, {"format": 3}, {"format": 0}, {"other": 1},
     {"temperature": 0.0}, {"temperature": -1.0}, {"class_names": [1, 2]}],
)  # fmt: skip
def test_a_wrong_description_is_rejected(wrong: dict[str, object]) -> None:
    """A description with one class, without channels, or of another format is rejected."""
    with pytest.raises(ValidationError):
        Description.model_validate(described("lenet5").model_dump() | wrong)
