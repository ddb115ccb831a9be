"""What each measure for speed is worth: this project's training with one of them taken away.

``python -m benchmarks.levers NAME`` is a contender; an empty name takes nothing away.
"""

import sys
from collections.abc import Callable, Sequence

from benchmarks.contender import serve
from benchmarks.ours import make
from benchmarks.throughput import Entry, read_variant
from pipeline import convolution, learner, model
from pipeline.device import find_device
from pipeline.framework import keras, tf


class KerasAdam:
    """Keras's own Adam in the place of `pipeline.optimizer.FusedAdam`."""

    def __init__(self, weights: Sequence[keras.Variable]) -> None:
        self.weights = weights
        self.adam = keras.optimizers.Adam(1e-4)
        self.adam.build(weights)

    def apply(self, gradients: Sequence[tf.Tensor], _rate: tf.Tensor, _step: tf.Tensor) -> None:
        """Update the weights."""
        self.adam.apply(gradients, self.weights)


def _keras_adam() -> None:
    vars(learner)["FusedAdam"] = KerasAdam


def _onednns_gradient() -> None:
    convolution.LARGEST_IMAGE = 0


def _power_function() -> None:
    model.ALEXNET_BETA = float("nan")


def _tensorflows_lrn() -> None:
    def call(self: model.LocalResponseNormalization, inputs: tf.Tensor) -> tf.Tensor:
        values = tf.cast(inputs, tf.float32)  # it knows no bfloat16 on CPUs
        normalised = tf.nn.lrn(values, self.depth_radius, self.bias, self.alpha, self.beta)
        return tf.cast(normalised, inputs.dtype)

    model.LocalResponseNormalization.call = call  # type: ignore[method-assign]


GRADIENT = "the filter's gradient as a convolution"
# What is taken away, and how. The first one is an environment variable, see `entries`.
TAKEN_AWAY: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "oneDNN": lambda: None,
    "the fused Adam": _keras_adam,
    GRADIENT: _onednns_gradient,
    "LRN as a band product": _tensorflows_lrn,
    "LRN's power by square roots": _power_function,
}


def entries(variant: str) -> list[Entry]:
    """Return a contender for each measure that the variant's layers and the device make use of."""
    row, _ = read_variant(variant)
    has_lrn = any(layer.type == "lrn" for layer in row.layers)
    has_bfloat16 = find_device().has_bfloat16
    return [
        Entry(
            f"without {name}" if name else "this project",
            [sys.executable, "-m", "benchmarks.levers", name],
            {"TF_ENABLE_ONEDNN_OPTS": "0" if name == "oneDNN" else "1"},
        )
        for name in TAKEN_AWAY
        if (has_lrn or not name.startswith("LRN")) and (has_bfloat16 or name != GRADIENT)
    ]


if __name__ == "__main__":
    TAKEN_AWAY[sys.argv[1]]()
    serve(lambda request: make(request, "auto"))
