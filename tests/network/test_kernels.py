import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.network import kernels
from pipeline.network.kernels import (
    BETA_1,
    BETA_2,
    EPSILON,
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
def test_the_filters_gradient_is_tensorflows(
    height: int, width: int, rows: int, columns: int
) -> None:
    """The gradient equals TensorFlow's for odd and even filters, on square and oblong images."""
    images, upstream = random_images(6, rows, columns, 3), random_images(6, rows, columns, 4)
    expected = tf.raw_ops.Conv2DBackpropFilter(
        input=images,
        filter_sizes=(height, width, 3, 4),
        out_backprop=upstream,
        strides=[1, 1, 1, 1],
        padding="SAME",
    )
    received = filter_gradient(images, upstream, (height, width))
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
def test_a_convolution_learns_what_kerass_learns(dtype: str, strides: int) -> None:
    """Outputs and all gradients equal those of Keras's layer, to the precision of bfloat16."""
    images = random_images(8, 7, 7, 3, dtype="float32" if dtype == "float32" else "bfloat16")
    arguments = {"strides": strides, "padding": "same", "activation": "relu", "dtype": dtype}
    ours, theirs = Conv2D(4, 3, **arguments), keras.layers.Conv2D(4, 3, **arguments)
    for layer in (ours, theirs):
        layer.build(images.shape)
    theirs.set_weights(ours.get_weights())
    for mine, other in zip(gradients(ours, images), gradients(theirs, images), strict=True):
        mine, other = (tf.cast(each, "float32").numpy() for each in (mine, other))
        assert np.abs(mine - other).max() <= 0.02 * np.abs(other).max()
        assert np.abs(other).max() > 0


@pytest.mark.parametrize(
    ("dtype", "side", "padding", "strides", "used"),
    [
        ("bfloat16", 16, "same", 1, True),
        ("float32", 16, "same", 1, False),
        ("bfloat16", 17, "same", 1, False),
        ("bfloat16", 16, "valid", 1, False),
        ("bfloat16", 16, "same", 2, False),
    ],
)
def test_our_gradient_is_used_only_where_it_is_faster(
    dtype: str, side: int, padding: str, strides: int, used: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is used in bfloat16, for filters of stride 1 that keep the size of small images."""
    calls: list[tuple[int, int]] = []

    def count(images: tf.Tensor, upstream: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
        calls.append(size)
        return filter_gradient(images, upstream, size)

    monkeypatch.setattr(kernels, "filter_gradient", count)
    layer = Conv2D(4, 3, strides=strides, padding=padding, dtype=dtype)
    gradients(layer, random_images(2, side, side, 3, dtype=dtype))
    assert calls == [(3, 3)] * used


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
