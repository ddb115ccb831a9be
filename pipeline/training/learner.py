"""A network under training: its weights, the optimiser's moments and the running means.

Its state can be saved and restored, also by another process, and leads to the same bytes.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
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
        self.reset()
        return means

    def reset(self) -> None:
        """Forget what was added."""
        for total in (self.loss, self.correct, self.images):
            total.assign(tf.zeros((), total.dtype))


def _sum_over_replicas(dtype: tf.DType) -> tf.Variable:
    return tf.Variable(
        tf.zeros((), dtype),
        trainable=False,
        synchronization=tf.VariableSynchronization.ON_READ,
        aggregation=tf.VariableAggregation.SUM,
    )


class MovingAverage:
    """An exponential moving average of a network's weights and batch statistics.

    After step t it is ``average += (1 - d) * (weight - average)``, with ``d = min(decay, (1 + t) /
    (10 + t))``, so that the first steps are soon forgotten. Source: TensorFlow,
    `tf.train.ExponentialMovingAverage`.

    Parameters
    ----------
    network : keras.Model
    decay : float
    """

    def __init__(self, network: keras.Model, decay: float) -> None:
        self.weights, self.decay = network.weights, decay
        self.averages = [tf.Variable(weight.value, trainable=False) for weight in self.weights]

    def add(self, step: tf.Tensor) -> None:
        """Move the averages towards the weights after `step`, a float32 scalar counted from 1."""
        decay = tf.minimum(self.decay, (1 + step) / (10 + step))
        for weight, average in zip(self.weights, self.averages, strict=True):
            tf.raw_ops.ResourceApplyGradientDescent(
                var=average.handle, alpha=1 - decay, delta=average - weight.value
            )

    def restart(self) -> None:
        """Begin anew with the weights as they are."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            average.assign(weight.numpy())

    def swap(self) -> None:
        """Exchange the network's weights and their averages."""
        for weight, average in zip(self.weights, self.averages, strict=True):
            current = weight.numpy()
            weight.assign(average.numpy())
            average.assign(current)

    def variables(self) -> dict[str, tf.Variable]:
        """Return the averages by name."""
        return {
            f"{weight.path}/average": average
            for weight, average in zip(self.weights, self.averages, strict=True)
        }


class Learner:
    """A network under training.

    Created in the scope of a `tf.distribute.Strategy`, each replica takes its share of a batch.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    batch_size : int
        A multiple of the number of replicas.
    averaging : float, optional
        The decay of an exponential moving average of the weights.
    parts : int
        In how many equal parts a batch is computed; see `pipeline.network.parts`.

    Attributes
    ----------
    step : int
        The number of optimiser steps made.
    running : RunningMean
        Of loss and accuracy, measured before each step.
    """

    def __init__(
        self,
        network: keras.Model,
        batch_size: int,
        averaging: float | None = None,
        parts: int = 1,
    ) -> None:
        self.network, self.batch_size, self.parts = network, batch_size, parts
        self.strategy = tf.distribute.get_strategy()
        self.adam = FusedAdam(network.trainable_variables)
        self.average = None if averaging is None else MovingAverage(network, averaging)
        self.running = RunningMean()
        self.step = 0
        self._first_bad_step = tf.Variable(
            0.0, trainable=False, aggregation=tf.VariableAggregation.ONLY_FIRST_REPLICA
        )
        self._compiled = self._compile()

    def learn(
        self, images: NDArray[np.uint8], labels: NDArray[np.uint8], rates: Sequence[float]
    ) -> None:
        """Make an optimiser step with each of some batches.

        Parameters
        ----------
        images : array of uint8, shape (steps, batch_size, height, width, channels)
        labels : array of uint8, shape (steps, batch_size)
        rates : sequence of float
            The learning rate of each step.
        """
        self._compiled(images, labels, np.array(rates, np.float32), np.float32(self.step + 1))
        self.step += len(rates)

    def restart(self, fresh: keras.Model) -> None:
        """Begin anew with the weights of a `fresh` network; what is compiled stays.

        It is as if the learner had been created with that network.
        """
        for variable, initial in zip(self.network.variables, fresh.variables, strict=True):
            variable.assign(initial.numpy())
        for moments in self.adam.moments().values():
            for moment in moments:
                moment.assign(tf.zeros_like(moment))
        if self.average is not None:
            self.average.restart()
        self.running.reset()
        self._first_bad_step.assign(0.0)
        self.step = 0

    @contextmanager
    def averaged(self) -> Iterator[None]:
        """Let the network have the averaged weights, if they are averaged."""
        if self.average is None:
            yield
            return
        self.average.swap()
        try:
            yield
        finally:
            self.average.swap()

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
        statistics = self.network.non_trainable_weights  # batch norms' running means
        variables |= {each.path: each for each in statistics}
        # The states of dropout's random numbers; Keras numbers their names by process.
        known = {id(each) for each in statistics}
        states = [each for each in self.network.non_trainable_variables if id(each) not in known]
        variables |= {f"random_state/{index}": state for index, state in enumerate(states)}
        if self.average is not None:
            variables |= self.average.variables()
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

        def differentiate(
            images: tf.Tensor, labels: tf.Tensor
        ) -> tuple[list[tf.Tensor], tf.Tensor, tf.Tensor, tf.Tensor]:
            with tf.GradientTape() as tape:
                logits = self.network(images, training=True)
                losses = cross_entropy(logits, labels)
                loss = tf.reduce_sum(losses) / self.batch_size
            gradients = tape.gradient(loss, [weight.value for weight in weights])
            return gradients, loss, losses, logits

        def learn_share(
            images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, step: tf.Tensor
        ) -> None:
            context = tf.distribute.get_replica_context()
            if replicas > 1:
                begin = context.replica_id_in_sync_group * share
                images, labels = images[begin : begin + share], labels[begin : begin + share]
            parts = [
                differentiate(*part)
                for part in zip(
                    tf.split(images, self.parts), tf.split(labels, self.parts), strict=True
                )
            ]
            gradients, loss, losses, logits = parts[0]
            if len(parts) > 1:
                of_weights, sums, each_loss, each_logits = zip(*parts, strict=True)
                gradients = [tf.add_n(each) for each in zip(*of_weights, strict=True)]
                loss = tf.add_n(sums)
                losses, logits = tf.concat(each_loss, 0), tf.concat(each_logits, 0)
            if replicas > 1:
                gradients, loss = context.all_reduce("sum", (gradients, loss))
            self.adam.apply(gradients, rate, step)
            if self.average is not None:
                self.average.add(step)
            self.running.add(losses, logits, labels)
            bad = self._first_bad_step
            is_first = tf.logical_and(tf.equal(bad, 0), ~tf.math.is_finite(loss))
            bad.assign(tf.where(is_first, step, bad))

        @tf.function(
            input_signature=[
                tf.TensorSpec((None, self.batch_size, *self.network.input_shape[1:]), tf.uint8),
                tf.TensorSpec((None, self.batch_size), tf.uint8),
                tf.TensorSpec((None,), tf.float32),
                tf.TensorSpec((), tf.float32),
            ]
        )
        def learn(images: tf.Tensor, labels: tf.Tensor, rates: tf.Tensor, first: tf.Tensor) -> None:
            for index in tf.range(tf.size(rates)):
                step = first + tf.cast(index, tf.float32)
                batch = images[index], labels[index], rates[index], step
                self.strategy.run(learn_share, args=batch)

        compiled: Callable[..., None] = learn
        return compiled


class Validated(NamedTuple):
    """What a network makes of a split: its loss and accuracy, and its logits (n, classes)."""

    means: LossAndAccuracy
    logits: NDArray[np.float32]


def make_validation(network: keras.Model, split: Split, batch_size: int) -> Callable[[], Validated]:
    """Return a function that measures what the network, as it is then, makes of a split."""
    running = RunningMean()

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8),
            tf.TensorSpec((None,), tf.uint8),
        ]
    )
    def measure(images: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
        logits = network(images, training=False)
        running.add(cross_entropy(logits, labels), logits, labels)
        return logits

    def validate() -> Validated:
        logits = []
        for start in range(0, len(split.labels), batch_size):
            stop = start + batch_size
            logits.append(measure(split.images[start:stop], split.labels[start:stop]).numpy())
        return Validated(running.take(), np.concatenate(logits))

    return validate


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    """Return the loss of each image, shape (n,), in nats."""
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)
