"""Small networks: a batch is computed in two halves side by side, each operation on one core.

An operation of a small network takes less time than to hand pieces of it to all cores. The halves
are two on any machine, since the results depend on their number in the last digits.
"""

from typing import NamedTuple

from pipeline.network.build import Description
from pipeline.network.device import Device
from pipeline.network.framework import keras, tf
from pipeline.network.layers import BatchNorm

PARTS = 2
SMALL = 5_000_000  # multiply-adds of an image; lenet5 takes 0.4 million, deotte 15
WORK_AT_ONCE = 1_000_000_000  # multiply-adds in one call: about a twentieth of a second
MOST_STEPS = 20  # more in one call gain nothing


def multiply_adds(description: Description) -> int:
    """Return the multiplications, each with an addition, that one image takes forward."""
    return sum(place.multiply_adds for place in description.place_layers())


class Layout(NamedTuple):
    """How a training is laid out: in `parts` of a batch, and up to so many `steps` in one call."""

    parts: int
    steps: int


def lay_out(description: Description, batch_size: int, device: Device) -> Layout:
    """Return how to train a network on a device.

    A batch norm needs the whole batch.
    """
    has_norm = any(isinstance(layer, BatchNorm) for layer in description.network.layers)
    parts = 1 if has_norm or batch_size % PARTS else count_parts(description, device)
    work = batch_size * multiply_adds(description)
    return Layout(parts, min(MOST_STEPS, max(1, WORK_AT_ONCE // work)))


def count_parts(description: Description, device: Device) -> int:
    """Return in how many parts to compute images: `PARTS` of a small network on a CPU, else one."""
    return PARTS if device.kind == "CPU" and multiply_adds(description) < SMALL else 1


def use_cores(parts: int) -> None:
    """Let an operation use all cores, or one if a batch is computed in several `parts`.

    Call it before the first tensor is made: TensorFlow fixes the setting then.
    """
    tf.config.threading.set_intra_op_parallelism_threads(1 if parts > 1 else 0)


def forward_in_parts(network: keras.Model, images: tf.Tensor, parts: int) -> tf.Tensor:
    """Return the logits of images, computed in `parts` if these divide their number."""
    if parts == 1 or images.shape[0] % parts:
        return network(images, training=False)
    return tf.concat([network(part, training=False) for part in tf.split(images, parts)], 0)
