"""Adam in one pass over the weights."""

from collections.abc import Sequence

from pipeline.framework import keras, tf

BETA_1 = 0.9
BETA_2 = 0.999
EPSILON = 1e-7


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
