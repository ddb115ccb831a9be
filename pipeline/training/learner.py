"""A network under training: its weights, the optimiser's moments and the running means.

Its state can be saved and restored, also by another process, and leads to the same bytes.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.splits import Split
from pipeline.network.framework import keras, tf
from pipeline.network.kernels import FusedAdam


class LossAndAccuracy(NamedTuple):
    """Mean cross-entropy in nats, and the share of images classified correctly."""

    loss: float
    accuracy: float


class RunningMean:
    """Mean loss and accuracy since they were last read, summed on the device.

    Each replica of a distributed network has its own sums, which are added when they are read.
    """

    def __init__(self) -> None:
        self.loss = _sum_over_replicas(tf.float64)
        self.correct = _sum_over_replicas(tf.int64)
        self.images = _sum_over_replicas(tf.int64)

    def add(self, losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor) -> None:
        """Add a batch: losses (n,), logits (n, classes), labels (n,)."""
        right = tf.equal(tf.argmax(logits, axis=1), tf.cast(labels, tf.int64))
        self.loss.assign_add(tf.reduce_sum(tf.cast(losses, tf.float64)))
        self.correct.assign_add(tf.reduce_sum(tf.cast(right, tf.int64)))
        self.images.assign_add(tf.size(labels, out_type=tf.int64))

    def take(self) -> LossAndAccuracy:
        """Return the means so far, and reset them."""
        images = int(self.images.numpy())
        means = LossAndAccuracy(
            float(self.loss.numpy()) / images, int(self.correct.numpy()) / images
        )
        for total in (self.loss, self.correct, self.images):
            total.assign(tf.zeros((), total.dtype))
        return means


def _sum_over_replicas(dtype: tf.DType) -> tf.Variable:
    return tf.Variable(
        tf.zeros((), dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


class Learner:
    """A network under training.

    Created in the scope of a `tf.distribute.Strategy`, each replica takes its share of a batch.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    batch_size : int
        A multiple of the number of replicas.

    Attributes
    ----------
    step : int
        The number of optimiser steps made.
    running : RunningMean
        Of loss and accuracy, measured before each step.
    """

    def __init__(self, network: keras.Model, batch_size: int) -> None:
        self.network, self.batch_size = network, batch_size
        self.strategy = tf.distribute.get_strategy()
        self.adam = FusedAdam(network.trainable_variables)
        self.running = RunningMean()
        self.step = 0
        self._first_bad_step = tf.Variable(
            0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self._compiled = self._compile()

    def learn(self, images: NDArray[np.uint8], labels: NDArray[np.uint8], rate: float) -> None:
        """Make one optimiser step with a batch: images (n, height, width, 1) and labels (n,)."""
        self.step += 1
        self._compiled(images, labels, np.float32(rate), np.float32(self.step))

    @property
    def first_bad_step(self) -> int:
        """The first step whose loss was not a finite number; 0 if there was none."""
        return int(self._first_bad_step.numpy())

    def arrays(self) -> dict[str, NDArray[Any]]:
        """Return everything that changes from step to step, by name."""
        return {name: np.asarray(variable.numpy()) for name, variable in self._variables().items()}

    def restore(self, step: int, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Restore what `arrays` returned after `step` steps."""
        variables = self._variables()
        if set(variables) != set(arrays):
            raise ValueError("the arrays are not those of this network")
        for name, variable in variables.items():
            variable.assign(arrays[name])
        self.step = step

    def _variables(self) -> dict[str, Any]:
        weights = self.network.trainable_variables
        variables: dict[str, Any] = {weight.path: weight for weight in weights}
        # The states of dropout's random numbers; Keras numbers their names by process.
        states = self.network.non_trainable_variables
        variables |= {f"random_state/{index}": state for index, state in enumerate(states)}
        for name, moments in self.adam.moments().items():
            variables |= {
                f"{weight.path}/{name}": moment
                for weight, moment in zip(weights, moments, strict=True)
            }
        sums = self.running
        return variables | {
            "running/loss": sums.loss,
            "running/correct": sums.correct,
            "running/images": sums.images,
        }

    def _compile(self) -> Callable[..., None]:
        replicas = self.strategy.num_replicas_in_sync
        share = self.batch_size // replicas
        weights = self.network.trainable_variables

        def learn_share(
            images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, step: tf.Tensor
        ) -> None:
            context = tf.distribute.get_replica_context()
            if replicas > 1:
                begin = context.replica_id_in_sync_group * share
                images, labels = images[begin : begin + share], labels[begin : begin + share]
            with tf.GradientTape() as tape:
                logits = self.network(images, training=True)
                losses = cross_entropy(logits, labels)
                loss = tf.reduce_sum(losses) / self.batch_size
            gradients = tape.gradient(loss, [weight.value for weight in weights])
            if replicas > 1:
                gradients, loss = context.all_reduce("sum", (gradients, loss))
            self.adam.apply(gradients, rate, step)
            self.running.add(losses, logits, labels)
            bad = self._first_bad_step
            is_first = tf.logical_and(tf.equal(bad, 0), ~tf.math.is_finite(loss))
            bad.assign(tf.where(is_first, step, bad))

        @tf.function(
            input_signature=[
                tf.TensorSpec((self.batch_size, *self.network.input_shape[1:]), tf.uint8),
                tf.TensorSpec((self.batch_size,), tf.uint8),
                tf.TensorSpec((), tf.float32),
                tf.TensorSpec((), tf.float32),
            ]
        )
        def learn(images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, step: tf.Tensor) -> None:
            self.strategy.run(learn_share, args=(images, labels, rate, step))

        compiled: Callable[..., None] = learn
        return compiled


def make_validation(
    network: keras.Model, split: Split, batch_size: int
) -> Callable[[], LossAndAccuracy]:
    """Return a function that measures the network's current loss and accuracy on a split."""
    running = RunningMean()

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8),
            tf.TensorSpec((None,), tf.uint8),
        ]
    )
    def measure(images: tf.Tensor, labels: tf.Tensor) -> None:
        logits = network(images, training=False)
        running.add(cross_entropy(logits, labels), logits, labels)

    def validate() -> LossAndAccuracy:
        for start in range(0, len(split.labels), batch_size):
            stop = start + batch_size
            measure(split.images[start:stop], split.labels[start:stop])
        return running.take()

    return validate


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the loss of each image, shape (n,), in nats."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)
