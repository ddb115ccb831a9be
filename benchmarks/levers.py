"""What each performance measure gains: training speed with one of them turned off at a time.

``python -m benchmarks.levers NAME`` is a contender; an empty name turns nothing off.
"""

import sys
from collections.abc import Callable, Sequence
from unittest.mock import patch

from benchmarks.contender import serve
from benchmarks.ours import make
from benchmarks.throughput import Entry, read_variant
from pipeline.network import kernels
from pipeline.network.device import find_device
from pipeline.network.framework import keras, tf
from pipeline.training import learner


class KerasAdam:
    """Keras's own Adam in place of `kernels.FusedAdam`."""

    def __init__(self, weights: Sequence[keras.Variable]) -> None:
        self.weights = weights
        self.adam = keras.optimizers.Adam(1e-4)
        self.adam.build(weights)

    def apply(self, gradients: Sequence[tf.Tensor], _rate: tf.Tensor, _step: tf.Tensor) -> None:
        """Update the weights."""
        self.adam.apply(gradients, self.weights)


def _tensorflows_lrn(layer: kernels.LocalResponseNormalization, inputs: tf.Tensor) -> tf.Tensor:
    values = tf.cast(inputs, tf.float32)  # it has no bfloat16 kernel for CPUs
    normalised = tf.nn.lrn(values, layer.depth_radius, layer.bias, layer.alpha, layer.beta)
    return tf.cast(normalised, inputs.dtype)


GRADIENT = "the filter's gradient as a convolution"
# TensorFlow reads the variable when it is imported, and the pipeline sets it.
_WITHOUT_ONEDNN = (
    "import os, pipeline, runpy; os.environ['TF_ENABLE_ONEDNN_OPTS'] = '0'; "
    "runpy.run_module('benchmarks.levers', run_name='__main__', alter_sys=True)"
)
COMMANDS = {"oneDNN": ("-c", _WITHOUT_ONEDNN)}
# How each one is turned off; oneDNN by a command of its own.
TURN_OFF: dict[str, Callable[[], object]] = {
    "": lambda: None,
    "oneDNN": lambda: None,
    "the fused Adam": patch.object(learner, "FusedAdam", KerasAdam).start,
    GRADIENT: patch.object(kernels, "LARGEST_IMAGE", 0).start,
    "LRN as a band product": patch.object(
        kernels.LocalResponseNormalization, "call", _tensorflows_lrn
    ).start,
    "LRN's power by square roots": patch.object(kernels, "ALEXNET_BETA", None).start,
}


def entries(variant: str) -> list[Entry]:
    """Return a contender for each measure that affects the variant on this device."""
    row, _ = read_variant(variant)
    has_lrn = any(layer.type == "lrn" for layer in row.layers)
    has_bfloat16 = find_device().has_bfloat16
    return [
        Entry(
            f"without {name}" if name else "this project",
            [sys.executable, *COMMANDS.get(name, ("-m", "benchmarks.levers")), name],
        )
        for name in TURN_OFF
        if (has_lrn or not name.startswith("LRN")) and (has_bfloat16 or name != GRADIENT)
    ]


if __name__ == "__main__":
    TURN_OFF[sys.argv[1]]()
    serve(lambda request: make(request, "auto"))
