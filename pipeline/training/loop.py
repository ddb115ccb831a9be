"""The training loop: optimiser steps, validation, learning curves and checkpoints."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from pipeline.core.errors import TrainingError
from pipeline.core.progress import Progress
from pipeline.datasets.splits import Split
from pipeline.network.framework import keras, tf
from pipeline.training import checkpoint
from pipeline.training.batches import BatchOrder
from pipeline.training.checkpoint import Checkpoint, Checkpoints
from pipeline.training.learner import Learner, make_validation
from pipeline.training.recipe import Train, Variant


@dataclass
class History:
    """Learning curves: a row every few steps for training, a row per epoch for validation."""

    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


def train(
    network: keras.Model,
    variant: Variant,
    settings: Train,
    seed: int,
    splits: Mapping[str, Split],
    steps: int,
    progress: Progress,
    checkpoints: Checkpoints,
) -> History:
    """Train a freshly built `network` in place, from its newest checkpoint if there is one.

    `splits` has ``"train"`` and ``"validation"``, the seed decides on the order of the images, and
    each of the optimiser's `steps` advances `progress`.

    Raises
    ------
    TrainingError
        If the loss is not finite, or a batch does not fit in memory.
    """
    images, labels = splits["train"]
    batch_size = variant.batch_size
    steps_per_epoch = len(labels) // batch_size
    learner = Learner(network, batch_size)
    validate = make_validation(network, splits["validation"], batch_size)
    order = BatchOrder(len(labels), seed)
    history = History()

    def rate_at(step: int) -> float:
        return variant.learning_rate * settings.schedule.factor(step, steps)

    def position() -> dict[str, float]:
        return {"step": learner.step, "epoch": learner.step * batch_size / len(labels)}

    def stop_unless_finite(*, all_is: bool = True) -> None:
        bad = learner.first_bad_step or (0 if all_is else learner.step)
        if bad:
            last_good = checkpoints.newest_path()
            raise TrainingError(
                f"non-finite loss at step {bad:,}, at learning rate "
                f"{rate_at(bad):.3g}: lower the learning rate or lengthen the warm-up; the last "
                f"good checkpoint is {last_good or 'none yet'}"
            )

    def save_checkpoint() -> None:
        arrays = learner.arrays()
        stop_unless_finite(all_is=checkpoint.are_finite(arrays))
        checkpoints.save(Checkpoint(learner.step, arrays, {"history": asdict(history)}))

    if saved := checkpoints.newest():
        learner.restore(saved.step, saved.arrays)
        history = History(**saved.notes["history"])
        for _ in range(saved.step):  # the order is a function of seed and step
            order.next_batch(batch_size)
        progress.skip(saved.step)
        print(f"seed {seed}: resuming after step {saved.step:,} of {steps:,}", flush=True)

    for step in range(learner.step + 1, steps + 1):
        batch = order.next_batch(batch_size)
        rate = rate_at(step)
        try:
            learner.learn(images[batch], labels[batch], rate)
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise TrainingError(
                f"out of memory at step {step:,}: a batch of {batch_size:,} does not fit; lower "
                "the variant's batch_size"
            ) from error
        if step % settings.log_every_steps == 0 or step == steps:
            stop_unless_finite()
            history.train.append(
                {**position(), "learning_rate": rate, **learner.running.take()._asdict()}
            )
        if step % steps_per_epoch == 0 or step == steps:
            measured = validate()
            stop_unless_finite(all_is=bool(np.isfinite(measured.loss)))
            history.validation.append({**position(), **measured._asdict()})
        progress.advance(1, _detail(history))
        if step == steps or checkpoints.is_due(step):
            save_checkpoint()
    return history


def _detail(history: History) -> str:
    """Return the newest loss, and the newest validation accuracy, for the progress line."""
    parts = [f"loss {row['loss']:.4f}" for row in history.train[-1:]]
    parts += [f"validation accuracy {row['accuracy']:.2%}" for row in history.validation[-1:]]
    return ", ".join(parts)


def curve(histories: Mapping[int, History], split: str) -> str:
    """Return the curves on a split as CSV: first the seed, numbers with six significant digits."""
    rows = [
        {"seed": seed, **row}
        for seed, history in histories.items()
        for row in getattr(history, split)
    ]
    lines = [",".join(rows[0]), *(",".join(map(_six_digits, row.values())) for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def _six_digits(number: float) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)
