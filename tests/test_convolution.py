import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline import convolution
from pipeline.convolution import Conv2D, filter_gradient

SHAPES = [(3, 3, 7, 7), (5, 5, 14, 14), (2, 4, 5, 6), (1, 3, 4, 9), (11, 11, 8, 8)]


def random_images(*shape: int, dtype: str = "float32") -> tf.Tensor:
    return tf.cast(np.random.default_rng(sum(shape)).normal(size=shape), dtype)


@pytest.mark.parametrize(("height", "width", "rows", "columns"), SHAPES)
def test_the_filters_gradient_is_tensorflows(
    height: int, width: int, rows: int, columns: int
) -> None:
    """For filters of odd and even sizes, on square and oblong images, it is TensorFlow's."""
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
def test_a_layer_learns_what_kerass_learns(dtype: str, strides: int) -> None:
    """Outputs and all gradients are those of Keras's layer, to the precision of bfloat16."""
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
    ("dtype", "side", "padding", "strides", "taken"),
    [
        ("bfloat16", 16, "same", 1, True),
        ("float32", 16, "same", 1, False),
        ("bfloat16", 17, "same", 1, False),
        ("bfloat16", 16, "valid", 1, False),
        ("bfloat16", 16, "same", 2, False),
    ],
)
def test_the_other_way_is_taken_where_it_is_faster(
    dtype: str, side: int, padding: str, strides: int, taken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is taken in bfloat16, by filters of stride 1 that keep the size of small images."""
    calls: list[tuple[int, int]] = []

    def count(images: tf.Tensor, upstream: tf.Tensor, size: tuple[int, int]) -> tf.Tensor:
        calls.append(size)
        return filter_gradient(images, upstream, size)

    monkeypatch.setattr(convolution, "filter_gradient", count)
    layer = Conv2D(4, 3, strides=strides, padding=padding, dtype=dtype)
    gradients(layer, random_images(2, side, side, 3, dtype=dtype))
    assert calls == [(3, 3)] * taken
