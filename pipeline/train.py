"""Train a variant on a data set, for its budget of samples or epochs."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import keras
import numpy as np
import pandas as pd
import tensorflow as tf

from pipeline import model, paths
from pipeline.batches import BatchOrder
from pipeline.data import Classes, Split, map_split
from pipeline.device import Precision, find_device
from pipeline.errors import TrainingError, run_stage
from pipeline.files import require_writable, write_json, write_text
from pipeline.optimizer import FusedAdam
from pipeline.params import Params, Section
from pipeline.progress import Progress
from pipeline.variants import BudgetOverride, PositiveInt, Schedule, Seeds, Variant, count_steps


class Train(Section):
    """How every variant is trained: once for each of ``seeds``, if it has none of its own."""

    seeds: Seeds
    precision: Precision
    schedule: Schedule
    log_every_steps: PositiveInt


class LossAndAccuracy(NamedTuple):
    """Mean cross-entropy in nats, and share of images classified rightly."""

    loss: float
    accuracy: float


class RunningMean:
    """Sums of loss and correct answers, kept where they are computed until they are asked for."""

    def __init__(self) -> None:
        self.loss = tf.Variable(0.0, dtype=tf.float64)
        self.correct = tf.Variable(0, dtype=tf.int64)
        self.images = tf.Variable(0, dtype=tf.int64)

    def add(self, losses: tf.Tensor, logits: tf.Tensor, labels: tf.Tensor) -> None:
        """Add a batch: losses (n,), logits (n, classes), labels (n,)."""
        right = tf.equal(tf.argmax(logits, axis=1), tf.cast(labels, tf.int64))
        self.loss.assign_add(tf.reduce_sum(tf.cast(losses, tf.float64)))
        self.correct.assign_add(tf.reduce_sum(tf.cast(right, tf.int64)))
        self.images.assign_add(tf.size(labels, out_type=tf.int64))

    def take(self) -> LossAndAccuracy:
        """Return the means so far, and begin again."""
        images = int(self.images.numpy())
        means = LossAndAccuracy(
            float(self.loss.numpy()) / images, int(self.correct.numpy()) / images
        )
        for total in (self.loss, self.correct, self.images):
            total.assign(tf.zeros_like(total))
        return means


@dataclass
class History:
    """Learning curves: one row every few steps for training, one an epoch for validation."""

    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


class Trained(NamedTuple):
    """What a training leaves: its curves, and the seconds that it took.

    The first step is the one that compiles; it counts as training, but not for the speed.
    """

    history: History
    training_seconds: float
    first_step_seconds: float
    validation_seconds: float


def make_training_step(
    network: keras.Model, batch_size: int, running: RunningMean
) -> Callable[..., None]:
    """Return a compiled function of (images, labels, rate, step) that makes one optimiser step.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    batch_size : int
    running : RunningMean
        Takes the batch's loss and accuracy, before the step.
    """
    weights = network.trainable_variables
    adam = FusedAdam(weights)

    @tf.function(
        input_signature=[
            tf.TensorSpec((batch_size, *network.input_shape[1:]), tf.uint8),
            tf.TensorSpec((batch_size,), tf.uint8),
            tf.TensorSpec((), tf.float32),
            tf.TensorSpec((), tf.float32),
        ]
    )
    def training_step(
        images: tf.Tensor, labels: tf.Tensor, rate: tf.Tensor, step: tf.Tensor
    ) -> None:
        with tf.GradientTape() as tape:
            logits = network(images, training=True)
            losses = _cross_entropy(logits, labels)
            loss = tf.reduce_mean(losses)
        gradients = tape.gradient(loss, [weight.value for weight in weights])
        adam.apply(gradients, rate, step)
        running.add(losses, logits, labels)

    step_function: Callable[..., None] = training_step
    return step_function


def make_validation(
    network: keras.Model, split: Split, batch_size: int
) -> Callable[[], LossAndAccuracy]:
    """Return a function that measures the network, as it is then, on a split."""
    running = RunningMean()

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8),
            tf.TensorSpec((None,), tf.uint8),
        ]
    )
    def measure(images: tf.Tensor, labels: tf.Tensor) -> None:
        logits = network(images, training=False)
        running.add(_cross_entropy(logits, labels), logits, labels)

    def validate() -> LossAndAccuracy:
        for start in range(0, len(split.labels), batch_size):
            stop = start + batch_size
            measure(split.images[start:stop], split.labels[start:stop])
        return running.take()

    return validate


def _cross_entropy(logits: tf.Tensor, labels: tf.Tensor) -> tf.Tensor:
    return tf.nn.sparse_softmax_cross_entropy_with_logits(tf.cast(labels, tf.int32), logits)


def train(
    network: keras.Model,
    variant: Variant,
    settings: Train,
    seed: int,
    splits: Mapping[str, Split],
    steps: int,
    progress: Progress,
) -> Trained:
    """Train `network` in place.

    Parameters
    ----------
    network : keras.Model
        Freshly built.
    variant : Variant
        Gives batch size and learning rate.
    settings : Train
    seed : int
        Of the order of the images.
    splits : dict
        The ``"train"`` and the ``"validation"`` split.
    steps : int
        How many optimiser steps to make.
    progress : Progress
        Advanced at each step.

    Raises
    ------
    TrainingError
        If the loss is no longer a finite number, or a batch does not fit in memory.
    """
    images, labels = splits["train"]
    batch_size = variant.batch_size
    steps_per_epoch = len(labels) // batch_size
    running = RunningMean()
    training_step = make_training_step(network, batch_size, running)
    validate = make_validation(network, splits["validation"], batch_size)
    order = BatchOrder(len(labels), seed)
    history = History()
    first_step_seconds = validation_seconds = 0.0
    begin = time.perf_counter()
    for step in range(1, steps + 1):
        batch = order.next_batch(batch_size)
        rate = variant.learning_rate * settings.schedule.factor(step, steps)
        try:
            training_step(images[batch], labels[batch], np.float32(rate), np.float32(step))
        except tf.errors.ResourceExhaustedError as error:
            raise TrainingError(
                f"out of memory at step {step:,}: a batch of {batch_size:,} does not fit; lower "
                "the variant's batch_size"
            ) from error
        if step == 1:
            first_step_seconds = time.perf_counter() - begin
        if step % settings.log_every_steps == 0 or step == steps:
            means = running.take()
            if not np.isfinite(means.loss):
                raise TrainingError(
                    f"the loss became {means.loss} at step {step:,}, at learning rate "
                    f"{rate:.3g}: lower the learning rate or lengthen the warm-up"
                )
            place = {"step": step, "epoch": step * batch_size / len(labels)}
            history.train.append({**place, "learning_rate": rate, **means._asdict()})
        if step % steps_per_epoch == 0 or step == steps:
            before = time.perf_counter()
            measured = validate()
            place = {"step": step, "epoch": step * batch_size / len(labels)}
            history.validation.append({**place, **measured._asdict()})
            validation_seconds += time.perf_counter() - before
        progress.advance(1, _detail(history))
    seconds = time.perf_counter() - begin - validation_seconds
    return Trained(history, seconds, first_step_seconds, validation_seconds)


def _detail(history: History) -> str:
    """Return the newest loss, and the newest validation accuracy, for the progress line."""
    parts = [f"loss {row['loss']:.4f}" for row in history.train[-1:]]
    parts += [f"validation accuracy {row['accuracy']:.2%}" for row in history.validation[-1:]]
    return ", ".join(parts)


def curve(trainings: Mapping[int, Trained], split: str) -> str:
    """Return the learning curves on a split as CSV, numbers with six significant digits.

    Parameters
    ----------
    trainings : dict of int to Trained
        By seed, which is the first column.
    split : {"train", "validation"}
    """
    rows = [
        {"seed": seed, **row}
        for seed, trained in trainings.items()
        for row in getattr(trained.history, split)
    ]
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g", lineterminator="\n")


def summarise(trainings: Mapping[int, Trained], parameters: int, batch_size: int) -> dict[str, Any]:
    """Return what a training took and reached, the mean over seeds; seconds without validation."""
    all_trained = trainings.values()
    last = [each.history.validation[-1] for each in all_trained]
    steps = int(last[0]["step"])
    speeds = [
        (steps - 1) * batch_size / (each.training_seconds - each.first_step_seconds)
        for each in all_trained
    ]

    return {
        "seeds": list(trainings),
        "parameters": parameters,
        "steps": steps,
        "samples": steps * batch_size,
        "epochs": round(last[0]["epoch"], 3),
        "validation_loss": round(statistics.mean(row["loss"] for row in last), 6),
        "validation_accuracy": round(statistics.mean(row["accuracy"] for row in last), 6),
        "seconds": round(statistics.mean(each.training_seconds for each in all_trained), 1),
        "validation_seconds": round(
            statistics.mean(each.validation_seconds for each in all_trained), 1
        ),
        "images_per_second": round(statistics.mean(speeds), 1),
    }


def main(dataset: str, variant: str) -> None:
    """Train `variant` on `dataset`, and write models, curves and what it took."""
    params = Params()
    row: Variant = params.get(f"variants.{variant}", Variant)
    settings: Train = params.get("train", Train)
    override: BudgetOverride = params.get(f"datasets.{dataset}.train", BudgetOverride)
    classes: int = params.get(f"datasets.{dataset}.classes", Classes)
    splits = {name: map_split(paths.prepared(dataset, name)) for name in ("train", "validation")}
    images = splits["train"].images
    seeds = row.seeds or settings.seeds
    require_writable(
        paths.training(dataset, variant),
        *(paths.model(dataset, variant, seed) for seed in seeds),
        *(paths.history(dataset, variant, name) for name in splits),
    )
    steps = count_steps(override.apply(row.budget), row.batch_size, len(images))

    device = find_device()
    precision = device.precision(settings.precision)
    tf.config.experimental.enable_op_determinism()
    description = model.Description(
        dataset=dataset,
        variant=variant,
        image_shape=list(images.shape[1:]),
        classes=classes,
        network=row.network(),
    )
    print(
        f"{dataset}/{variant}: {description.parameters:,} parameters, {steps:,} steps of "
        f"{row.batch_size}, {f'{len(seeds)} seeds, ' if len(seeds) > 1 else ''}"
        f"{precision} on the {device}",
        flush=True,
    )
    model.remove_all(paths.models(dataset, variant))
    trainings = {}
    with Progress(
        f"train {dataset}/{variant}",
        steps * len(seeds),
        "steps",
        rate_unit="images",
        rate_per_unit=row.batch_size,
    ) as progress:
        for seed in seeds:
            network = model.build(description, seed=seed, precision=precision)
            trainings[seed] = train(network, row, settings, seed, splits, steps, progress)
            model.save(paths.model(dataset, variant, seed), network, description)

    for name in splits:
        write_text(paths.history(dataset, variant, name), curve(trainings, name))
    write_json(
        paths.training(dataset, variant),
        summarise(trainings, description.parameters, row.batch_size)
        | {
            "precision": precision,
            "device": str(device),
            "versions": {"tensorflow": tf.__version__, "keras": keras.__version__},
        },
    )


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
