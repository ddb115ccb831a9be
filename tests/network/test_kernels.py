from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.network import kernels
from pipeline.network.kernels import (
    BETA_1,
    BETA_2,
    EPSILON,
    FEWEST_CHANNELS,
    Affine,
    BatchNormalization,
    Conv2D,
    FusedAdam,
    LocalResponseNormalization,
    filter_gradient,
)


class TestLocalResponseNormalization:
    """It computes what TensorFlow's operation computes."""

    x = np.random.default_rng(0).normal(0, 20, (2, 3, 3, 24)).astype(np.float32)

    @pytest.mark.parametrize("beta", [0.75, 0.5])
    def test_output_is_tensorflows(self, beta: float) -> None:
        """Its output equals that of tf.nn.lrn, for AlexNet's exponent and for another one."""
        ours = LocalResponseNormalization(4, 1.0, 0.001 / 9, beta)(self.x)
        theirs = tf.nn.lrn(self.x, 4, 1.0, 0.001 / 9, beta)
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

    def test_gradient_is_tensorflows(self) -> None:
        """Its gradient equals that of tf.nn.lrn."""
        x = tf.constant(self.x)
        with tf.GradientTape(persistent=True) as tape:
            tape.watch(x)
            ours = tf.reduce_sum(LocalResponseNormalization(2, 2.0, 1e-3, 0.75)(x) ** 3)
            theirs = tf.reduce_sum(tf.nn.lrn(x, 2, 2.0, 1e-3, 0.75) ** 3)
        expected = tape.gradient(theirs, x)
        np.testing.assert_allclose(tape.gradient(ours, x), expected, rtol=1e-4, atol=1e-2)

    def test_bfloat16_is_close_to_float32(self) -> None:
        """In bfloat16 the result differs from float32's by rounding only."""
        plain = LocalResponseNormalization(4, 1.0, 0.001 / 9, 0.75)(self.x)
        short = LocalResponseNormalization(4, 1.0, 0.001 / 9, 0.75, dtype="mixed_bfloat16")(
            tf.cast(self.x, tf.bfloat16)
        )
        assert short.dtype == tf.bfloat16
        np.testing.assert_allclose(tf.cast(short, tf.float32), plain, rtol=0.02, atol=1e-3)


SHAPES = [(3, 3, 7, 7), (5, 5, 14, 14), (2, 4, 5, 6), (1, 3, 4, 9), (11, 11, 8, 8)]


def random_images(*shape: int, dtype: str = "float32") -> tf.Tensor:
    return tf.cast(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


@pytest.mark.parametrize(("height", "width", "rows", "columns"), SHAPES)
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("padding", ["SAME", "VALID"])
def test_the_filters_gradient_is_tensorflows(
    height: int, width: int, rows: int, columns: int, stride: int, padding: str
) -> None:
    """The gradient equals TensorFlow's for odd and even filters, strides and paddings."""
    rows, columns = rows + height, columns + width  # so that an unpadded filter fits
    images = random_images(6, rows, columns, 3)
    filters = random_images(height, width, 3, 4)
    outputs = tf.nn.conv2d(images, filters, stride, padding)
    upstream = random_images(*outputs.shape)
    expected = tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=filters.shape,
        out_backprop=upstream,
        strides=[1, stride, stride, 1],
        padding=padding,
    )
    received = filter_gradient(images, upstream, (height, width), stride, padding)
    np.testing.assert_allclose(received, expected, rtol=1e-4, atol=1e-4)


def gradients(layer: keras.layers.Layer, images: tf.Tensor) -> list[tf.Tensor]:
    with tf.GradientTape() as tape:
        tape.watch(images)
        outputs = layer(images)
        loss = tf.reduce_sum(tf.cast(outputs, "float32") ** 2)
    watched = [images, *(weight.value for weight in layer.trainable_variables)]
    return [outputs, *tape.gradient(loss, watched)]


@pytest.mark.parametrize("dtype", ["mixed_bfloat16", "float32"])
@pytest.mark.parametrize("strides", [1, 2])
@pytest.mark.parametrize("padding", ["same", "valid"])
@pytest.mark.parametrize("channels", [3, FEWEST_CHANNELS])
def test_a_convolution_learns_what_kerass_learns(
    dtype: str, strides: int, padding: str, channels: int
) -> None:
    """Outputs and all gradients equal those of Keras's layer, to the precision of bfloat16."""
    images = random_images(8, 7, 7, channels, dtype="float32" if dtype == "float32" else "bfloat16")
    arguments = {"strides": strides, "padding": padding, "activation": "relu", "dtype": dtype}
    ours, theirs = Conv2D(4, 3, **arguments), keras.layers.Conv2D(4, 3, **arguments)
    for layer in (ours, theirs):
        layer.build(images.shape)
    theirs.set_weights(ours.get_weights())
    for mine, other in zip(gradients(ours, images), gradients(theirs, images), strict=True):
        mine, other = (tf.cast(each, "float32").numpy() for each in (mine, other))
        assert np.abs(mine - other).max() <= 0.02 * np.abs(other).max()
        assert np.abs(other).max() > 0


@pytest.mark.parametrize(
    ("dtype", "side", "channels", "padding", "strides", "used"),
    [
        ("bfloat16", 16, 16, "same", 1, True),
        ("float32", 16, 16, "same", 1, False),
        ("bfloat16", 17, 16, "same", 1, False),
        ("bfloat16", 18, 16, "valid", 1, True),
        ("bfloat16", 19, 16, "valid", 1, False),
        ("bfloat16", 16, 16, "same", 2, True),
        ("bfloat16", 17, 16, "same", 2, False),
        ("bfloat16", 18, 16, "valid", 2, True),
        ("bfloat16", 16, 15, "same", 1, False),
        ("bfloat16", 16, 1, "same", 1, False),
    ],
)
def test_our_gradient_is_used_only_where_it_is_faster(
    dtype: str, side: int, channels: int, padding: str, strides: int, used: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    """It is used in bfloat16, for small outputs of images with enough channels."""
    calls: list[tuple[int, int]] = []

    def count(images: tf.Tensor, upstream: tf.Tensor, size: tuple[int, int], *how: Any) -> Any:
        calls.append(size)
        return filter_gradient(images, upstream, size, *how)

    monkeypatch.setattr(kernels, "filter_gradient", count)
    layer = Conv2D(4, 3, strides=strides, padding=padding, dtype=dtype)
    gradients(layer, random_images(2, side, side, channels, dtype=dtype))
    assert calls == [(3, 3)] * used


NORM_SHAPES = [(9, 5, 4, 3), (32, 6)]


def norms(
    shape: tuple[int, ...], activation: str = "linear", **arguments: Any
) -> tuple[keras.layers.Layer, keras.layers.Layer]:
    """Return our batch norm and Keras's, with the same weights and running means."""
    ours = BatchNormalization(0.9, 0.01, activation, **arguments)
    theirs = keras.layers.BatchNormalization(momentum=0.9, epsilon=0.01, **arguments)
    random = np.random.default_rng(1)
    weights = [random.uniform(0.5, 2, shape[-1:]) for _ in range(4)]
    for layer in (ours, theirs):
        layer.build((None, *shape[1:]))
        layer.set_weights(weights)
    assert [each.name for each in theirs.weights] == [
        "gamma", "beta", "moving_mean", "moving_variance",
    ]  # fmt: skip
    return ours, theirs


@pytest.mark.parametrize("shape", NORM_SHAPES)
@pytest.mark.parametrize("training", [False, True])
def test_a_batch_norm_computes_what_kerass_computes(shape: tuple[int, ...], training: bool) -> None:
    """Outputs and all gradients are Keras's, for images and vectors, in training and inference."""
    ours, theirs = norms(shape)
    x = 3 * random_images(*shape) + 1
    upstream = random_images(*shape)
    found = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            outputs = layer(x, training=training)
            loss = tf.reduce_sum(outputs * upstream)
        watched = [x, *(weight.value for weight in layer.trainable_variables)]
        found.append([outputs, *tape.gradient(loss, watched)])
    for mine, other in zip(*found, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_running_means_are_kerass_but_for_the_corrected_variance(shape: tuple[int, ...]) -> None:
    """After some batches the running mean is Keras's, and the variance that of unbiased batches."""
    ours, theirs = norms(shape)
    mean, variance = (np.asarray(each).astype(float) for each in theirs.weights[2:])
    for step in range(5):
        x = random_images(*shape) * step + step
        for layer in (ours, theirs):
            layer(x, training=True)
        flat = x.numpy().reshape(-1, shape[-1]).astype(float)
        mean = 0.9 * mean + 0.1 * flat.mean(axis=0)
        variance = 0.9 * variance + 0.1 * flat.var(axis=0, ddof=1)
    np.testing.assert_allclose(ours.mean, theirs.moving_mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.mean, mean, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(ours.variance, variance, rtol=1e-4)
    assert (np.asarray(ours.variance) > np.asarray(theirs.moving_variance)).all()


def test_inference_keeps_the_running_means() -> None:
    """In inference a batch norm changes nothing, and gives an image the same whatever is with it."""
    ours, _ = norms((9, 5, 4, 3))
    before = ours.get_weights()
    x = random_images(9, 5, 4, 3)
    together = ours(x, training=False).numpy()
    np.testing.assert_allclose(ours(x[:2], training=False), together[:2], rtol=1e-6)
    for first, second in zip(before, ours.get_weights(), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize(("activation", "applied"), [("relu", tf.nn.relu), ("tanh", tf.tanh)])
def test_a_batch_norm_ends_in_its_activation(activation: str, applied: Any) -> None:
    """The activation is applied to what a linear batch norm gives."""
    shape = (9, 5, 4, 3)
    linear, _ = norms(shape)
    curved, _ = norms(shape, activation)
    x = random_images(*shape)
    for training in (False, True):
        expected = applied(linear(x, training=training))
        np.testing.assert_allclose(curved(x, training=training), expected, atol=1e-6)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_a_batch_norm_in_bfloat16_keeps_its_statistics_in_float32(shape: tuple[int, ...]) -> None:
    """In mixed precision values are bfloat16, and weights and running means stay float32."""
    ours, _ = norms(shape, dtype="mixed_bfloat16")
    exact, _ = norms(shape)
    x = tf.cast(random_images(*shape), tf.bfloat16)
    outputs = ours(x, training=True)
    assert outputs.dtype == tf.bfloat16
    assert {weight.dtype for weight in ours.weights} == {"float32"}
    expected = exact(tf.cast(x, tf.float32), training=True)
    np.testing.assert_allclose(tf.cast(outputs, tf.float32), expected, atol=0.05)
    np.testing.assert_allclose(ours.mean, exact.mean, rtol=1e-3, atol=1e-4)
    np.testing.assert_allclose(ours.variance, exact.variance, rtol=1e-3)


@pytest.mark.parametrize("shape", NORM_SHAPES)
def test_an_affine_layer_scales_and_shifts_each_channel(shape: tuple[int, ...]) -> None:
    """Each channel has a scale and a shift of its own, then comes the activation."""
    layer = Affine("relu")
    x = random_images(*shape)
    np.testing.assert_array_equal(layer(x), np.maximum(x, 0))
    scale, shift = np.random.default_rng(0).normal(size=(2, shape[-1])).astype(np.float32)
    layer.set_weights([scale, shift])
    np.testing.assert_allclose(layer(x), np.maximum(x * scale + shift, 0), rtol=1e-6, atol=1e-6)


def test_adam_computes_what_kerass_adam_computes() -> None:
    """After twenty steps the weights equal those of Keras's Adam."""
    random = np.random.default_rng(0)
    begin = random.normal(size=(5, 3)).astype(np.float32)
    gradients = random.normal(size=(20, 5, 3)).astype(np.float32)
    ours, theirs = keras.Variable(begin), keras.Variable(begin)
    fused = FusedAdam([ours])
    adam = keras.optimizers.Adam(0.01, BETA_1, BETA_2, EPSILON)
    adam.build([theirs])
    for step, gradient in enumerate(gradients, start=1):
        fused.apply([tf.constant(gradient)], tf.constant(0.01), tf.constant(float(step)))
        adam.apply([tf.constant(gradient)])
    assert not np.allclose(begin, np.asarray(ours))
    np.testing.assert_allclose(np.asarray(ours), np.asarray(theirs), rtol=1e-5, atol=1e-6)
