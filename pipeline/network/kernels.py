"""The layers and the optimiser that are faster here than in Keras.

docs/performance.md has what each one gains.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from pipeline.network.framework import keras, tf

ALEXNET_BETA = 0.75
# `filter_gradient` is the faster way up to this many pixels of output, with stride 1 and with a
# larger one, and from this many channels on.
LARGEST_IMAGE = 16 * 16
LARGEST_STRIDED_IMAGE = 8 * 8
FEWEST_CHANNELS = 16

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-7


class LocalResponseNormalization(keras.layers.Layer):
    """AlexNet's local response normalisation (LRN), as a product with a band matrix.

    ``y = x / (bias + alpha * sum(x²))**beta``, the sum over the channels at most ``depth_radius``
    away. ``tf.nn.lrn`` computes the same, but has no bfloat16 kernel for CPUs, and its gradient is
    a scalar loop. Unlike batch normalisation it keeps no statistics, and does the same in training
    and inference. Source: A. Krizhevsky et al., 2012, section 3.3.

    Parameters
    ----------
    depth_radius : int
    bias, alpha, beta : float
    """

    def __init__(
        self, depth_radius: int, bias: float, alpha: float, beta: float, **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.depth_radius, self.bias, self.alpha, self.beta = depth_radius, bias, alpha, beta

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the band matrix B: 1 where two channels are neighbours, else 0."""
        channels = np.arange(input_shape[-1] or 0)
        distance = np.abs(channels[:, None] - channels)
        self.band = (distance <= self.depth_radius).astype(np.float32)
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Normalise images of shape (n, height, width, channels)."""
        # Constants must stay Python values here: a gradient function may not capture variables.
        band = tf.constant(self.band, inputs.dtype)
        bias, alpha, beta = self.bias, self.alpha, self.beta

        def sum_over_neighbours(values: tf.Tensor) -> tf.Tensor:
            flat = tf.matmul(tf.reshape(values, (-1, band.shape[0])), band)
            # float32: next to the bias, alpha is too small for bfloat16.
            return tf.reshape(tf.cast(flat, tf.float32), tf.shape(values))

        @tf.custom_gradient
        def normalise(x: tf.Tensor) -> tuple[tf.Tensor, Any]:
            # s = bias + α·(x²B), y = x·s^-β
            scale = bias + alpha * sum_over_neighbours(tf.square(x))
            factor = tf.cast(_inverse_power(scale, beta), x.dtype)
            y = x * factor

            def gradient(upstream: tf.Tensor) -> tf.Tensor:
                # With the upstream gradient g, and ∂s_j/∂x_i = 2α·x_i·B_ij (B is symmetric):
                # dx = g·s^-β + Σ_j g_j·x_j·(-β)·s_j^(-β-1)·∂s_j/∂x_i
                #    = g·s^-β − 2αβ·x·((g·y/s)B)
                shared = upstream * y / tf.cast(scale, x.dtype)
                across = tf.cast(2 * alpha * beta * sum_over_neighbours(shared), x.dtype)
                return upstream * factor - x * across

            return y, gradient

        return normalise(inputs)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape unchanged."""
        return input_shape


def _inverse_power(values: tf.Tensor, exponent: float) -> tf.Tensor:
    """Return ``values**-exponent``; for AlexNet's 0.75 by square roots, several times faster."""
    if exponent == ALEXNET_BETA:
        root = tf.math.rsqrt(values)
        return root * tf.sqrt(root)
    return tf.pow(values, -exponent)


class BatchNormalization(keras.layers.Layer):
    """Batch normalisation of each channel, in one operation forward and one backward.

    With a channel's mean m and variance v over a batch, ``y = gamma * (x - m) / sqrt(v + epsilon) +
    beta``; inference takes the running means of m and v instead, and the variance is corrected for
    the size of the batch, as in TensorFlow. Keras's own makes several passes over the values.
    Source: S. Ioffe and C. Szegedy, Batch Normalization, ICML 2015.

    Parameters
    ----------
    momentum, epsilon : float
    activation : str
    """

    def __init__(self, momentum: float, epsilon: float, activation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.momentum, self.epsilon = momentum, epsilon
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights, and the running means, all float32 of shape (channels,)."""
        shape = input_shape[-1:]

        def weight(name: str, initializer: str, *, trainable: bool) -> keras.Variable:
            return self.add_weight(
                shape=shape, name=name, initializer=initializer, trainable=trainable,
                dtype="float32", autocast=False, aggregation="mean",
            )  # fmt: skip

        self.gamma = weight("gamma", "ones", trainable=True)
        self.beta = weight("beta", "zeros", trainable=True)
        self.mean = weight("mean", "zeros", trainable=False)
        self.variance = weight("variance", "ones", trainable=False)
        self.built = True

    def call(self, inputs: tf.Tensor, *, training: bool = False) -> tf.Tensor:
        """Normalise images (n, height, width, channels), or vectors (n, channels)."""
        images = inputs if inputs.shape.rank == 4 else inputs[:, None, None, :]
        outputs, mean, variance, *_ = tf.raw_ops.FusedBatchNormV3(
            x=images,
            scale=tf.convert_to_tensor(self.gamma),
            offset=tf.convert_to_tensor(self.beta),
            mean=[] if training else tf.convert_to_tensor(self.mean),
            variance=[] if training else tf.convert_to_tensor(self.variance),
            epsilon=self.epsilon,
            is_training=training,
        )
        if training:
            for running, current in ((self.mean, mean), (self.variance, variance)):
                kept = tf.convert_to_tensor(running)
                running.assign(kept + (1 - self.momentum) * (current - kept))
        return self.activation(outputs if inputs.shape.rank == 4 else outputs[:, 0, 0, :])

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape unchanged."""
        return input_shape


class Affine(keras.layers.Layer):
    """``y = activation(scale * x + shift)``, with a scale and a shift for each channel."""

    def __init__(self, activation: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.activation = keras.activations.get(activation)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Make the weights, of shape (channels,)."""
        self.scale = self.add_weight(shape=input_shape[-1:], name="scale", initializer="ones")
        self.shift = self.add_weight(shape=input_shape[-1:], name="shift", initializer="zeros")
        self.built = True

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Scale and shift values of shape (n, …, channels)."""
        return self.activation(inputs * self.scale + self.shift)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """Return the shape unchanged."""
        return input_shape


class Conv2D(keras.layers.Conv2D):
    """Keras's convolution with a faster gradient of its filter for bfloat16 on CPUs.

    oneDNN, as TensorFlow calls it, computes that gradient no faster in bfloat16 than in float32,
    but forward convolutions twice as fast. So here the gradient is a forward convolution.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolve images of shape (n, height, width, channels)."""
        if not self._pays(inputs):
            return super().convolution_op(inputs, kernel)
        return _convolve(
            inputs, tf.convert_to_tensor(kernel), self.strides[0], self.padding.upper()
        )

    def _pays(self, inputs: tf.Tensor) -> bool:
        _, height, width, _ = self.compute_output_shape(inputs.shape)
        largest = LARGEST_IMAGE if self.strides == (1, 1) else LARGEST_STRIDED_IMAGE
        return (
            inputs.dtype == tf.bfloat16
            and height * width <= largest
            and inputs.shape[-1] >= FEWEST_CHANNELS
            and not tf.config.list_logical_devices("GPU")
        )


def _convolve(images: tf.Tensor, kernel: tf.Tensor, stride: int, padding: str) -> tf.Tensor:
    @tf.custom_gradient
    def convolve(images: tf.Tensor, kernel: tf.Tensor) -> tuple[tf.Tensor, Any]:
        def gradient(upstream: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
            of_images = tf.raw_ops.Conv2DBackpropInput(
                input_sizes=tf.shape(images),
                filter=kernel,
                out_backprop=upstream,
                strides=[1, stride, stride, 1],
                padding=padding,
            )
            size = tuple(kernel.shape[:2])
            return of_images, filter_gradient(images, upstream, size, stride, padding)

        return tf.nn.conv2d(images, kernel, stride, padding), gradient

    return convolve(images, kernel)


def filter_gradient(
    images: tf.Tensor,
    upstream: tf.Tensor,
    kernel_size: tuple[int, int],
    stride: int = 1,
    padding: str = "SAME",
) -> tf.Tensor:
    """Return the filter's gradient of a convolution.

    With images x, upstream gradient g, the stride s and the padding (p, q)::

        dK[a, b, c, f] = Σ_n Σ_i Σ_j  x[n, s·i + a - p, s·j + b - q, c] · g[n, i, j, f]

    This is a convolution of x by g, dilated by s, in which the batch n takes the place of the
    channels, over which a convolution sums. In memory a row of pixels holds all channels of a pixel
    side by side, so two pixels that are one column apart are ``channels`` values apart: seen as
    rows of ``columns * channels`` values, x needs no transposition of its channels if the
    convolution is dilated by ``channels`` along a row.

    Parameters
    ----------
    images : tensor (n, height, width, channels)
    upstream : tensor (n, height, width, filters)
        Gradient of the outputs.
    kernel_size : (int, int)
        Height and width.
    stride : int
    padding : {"SAME", "VALID"}

    Returns
    -------
    tensor (kernel height, kernel width, channels, filters)
    """
    (height, width), (_, rows, columns, channels) = kernel_size, images.shape

    def margins(kernel: int, size: int, outputs: int) -> tuple[int, int]:
        """Return TensorFlow's padding before and after a side."""
        both = max((outputs - 1) * stride + kernel - size, 0) if padding == "SAME" else 0
        return both // 2, both - both // 2

    top, bottom = margins(height, rows, upstream.shape[1])
    left, right = margins(width, columns, upstream.shape[2])
    by_image = tf.transpose(tf.reshape(images, (-1, rows * columns * channels)))
    gradient = tf.nn.conv2d(
        tf.reshape(by_image, (1, rows, columns * channels, -1)),
        tf.transpose(upstream, (1, 2, 0, 3)),
        strides=1,
        padding=[[0, 0], [top, bottom], [left * channels, right * channels], [0, 0]],
        dilations=(stride, stride * channels),
    )
    # A stride may leave rows and columns over that no output saw.
    seen = gradient[:, :height, : width * channels]
    return tf.reshape(seen, (height, width, channels, upstream.shape[3]))


class FusedAdam:
    """Adam whose update of a weight is one operation; Keras 3's own makes about twelve passes.

    Source: D. P. Kingma and J. Ba, Adam, ICLR 2015; epsilon is the paper's "epsilon hat", as in
    Keras.

    Parameters
    ----------
    weights : sequence of keras.Variable
        float32.
    """

    def __init__(self, weights: Sequence[keras.Variable]) -> None:
        self.weights = [weight.value for weight in weights]
        self.first_moments = [tf.Variable(tf.zeros_like(weight)) for weight in self.weights]
        self.second_moments = [tf.Variable(tf.zeros_like(weight)) for weight in self.weights]

    def moments(self) -> dict[str, list[tf.Variable]]:
        """Return the running means of gradients and of their squares, in the weights' order."""
        return {"first_moment": self.first_moments, "second_moment": self.second_moments}

    def apply(self, gradients: Sequence[tf.Tensor], rate: tf.Tensor, step: tf.Tensor) -> None:
        """Update the weights in place.

        Parameters
        ----------
        gradients : sequence of float32 tensors
            In the order of the weights.
        rate : float32 scalar
        step : float32 scalar
            Counted from 1.
        """
        beta_1_power, beta_2_power = tf.pow(BETA_1, step), tf.pow(BETA_2, step)
        for weight, first, second, gradient in zip(
            self.weights, self.first_moments, self.second_moments, gradients, strict=True
        ):
            tf.raw_ops.ResourceApplyAdam(
                var=weight.handle,
                m=first.handle,
                v=second.handle,
                beta1_power=beta_1_power,
                beta2_power=beta_2_power,
                lr=rate,
                beta1=BETA_1,
                beta2=BETA_2,
                epsilon=EPSILON,
                grad=gradient,
            )
