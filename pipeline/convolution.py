"""A convolution whose filter learns by another convolution: faster in bfloat16 on CPUs."""

from typing import Any

from pipeline.framework import keras, tf

# Pixels of an image up to which it pays.
LARGEST_IMAGE = 16 * 16


class Conv2D(keras.layers.Conv2D):  # type: ignore[misc]
    """Keras's convolution, with another way to its filter's gradient where that is faster.

    oneDNN, as TensorFlow calls it, computes that gradient in bfloat16 no faster than in float32.
    Convolutions forward it does compute twice as fast, so here the gradient is one.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve images of shape (n, height, width, channels)."""
        if not self._pays(inputs):
            return super().convolution_op(inputs, kernel)
        return _convolve(inputs, tf.convert_to_tensor(kernel))

    def _pays(self, inputs: tf.Tensor) -> bool:
        _, height, width, _ = inputs.shape
        return (
            inputs.dtype == tf.bfloat16
            and height * width <= LARGEST_IMAGE
            and self.padding == "same"
            and self.strides == (1, 1)
            and not tf.config.list_logical_devices("GPU")
        )


@tf.custom_gradient  # type: ignore[untyped-decorator]
def _convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
    def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        of_images = tf.raw_ops.Conv2DBackpropInput(
            input_sizes=tf.shape(images),
            filter=kernel,
            out_backprop=upstream,
            strides=[1, 1, 1, 1],
            padding="SAME",
        )
        return of_images, filter_gradient(images, upstream, tuple(kernel.shape[:2]))

    return tf.nn.conv2d(images, kernel, 1, "SAME"), gradient


def filter_gradient(
    images: tf.Tensor, upstream: tf.Tensor, kernel_size: tuple[int, int]
) -> tf.Tensor:
    """Return the gradient of a filter of stride 1 whose output is as large as its input.

    It is the images convolved by the outputs' gradients, with the batch as the channels that are
    summed over. Pixels lie side by side with all their channels: columns that are a pixel apart are
    so many channels apart, which a dilated convolution takes as they are.

    Parameters
    ----------
    images : tensor (n, height, width, channels)
    upstream : tensor (n, height, width, filters)
        Gradient of the outputs.
    kernel_size : (int, int)
        Height and width.

    Returns
    -------
    tensor (kernel height, kernel width, channels, filters)
    """
    (height, width), (_, rows, columns, channels) = kernel_size, images.shape
    by_image = tf.transpose(tf.reshape(images, (-1, rows * columns * channels)))
    gradient = tf.nn.conv2d(
        tf.reshape(by_image, (1, rows, columns * channels, -1)),
        tf.transpose(upstream, (1, 2, 0, 3)),
        strides=1,
        padding=[
            [0, 0],
            [(height - 1) // 2, height // 2],
            [(width - 1) // 2 * channels, width // 2 * channels],
            [0, 0],
        ],
        dilations=(1, channels),
    )
    return tf.reshape(gradient, (height, width, channels, upstream.shape[3]))
