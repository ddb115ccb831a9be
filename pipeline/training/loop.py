"""The training loop: optimiser steps, validation, learning curves and checkpoints."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from pipeline.core.errors import TrainingError
from pipeline.core.progress import Progress
from pipeline.datasets.splits import Split
from pipeline.network.framework import tf
from pipeline.training import checkpoint
from pipeline.training.batches import batches, divide
from pipeline.training.checkpoint import Checkpoint, Checkpoints
from pipeline.training.learner import Learner, Validated
from pipeline.training.recipe import Train, Variant
from pipeline.training.temperature import fit_temperature

COLUMNS = {
    "train": ("step", "epoch", "learning_rate", "loss", "accuracy"),
    "validation": ("step", "epoch", "loss", "accuracy"),
}


@dataclass
class History:
    """Learning curves: a row every few steps for training, a row per epoch for validation.

    The ``temperature`` is that of the trained network, 1 if there is no validation split.
    """

    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)
    temperature: float = 1.0


def train(
    learner: Learner,
    validate: Callable[[], Validated],
    variant: Variant,
    settings: Train,
    seed: int,
    splits: Mapping[str, Split],
    steps: int,
    steps_at_once: int,
    progress: Progress,
    checkpoints: Checkpoints,
) -> History:
    """Train the network of a fresh `learner`, from its newest checkpoint if there is one.

    Its weights are the averaged ones in the end, if the variant averages them.

    Parameters
    ----------
    learner : Learner
    validate : callable
        From `make_validation`, for the same network.
    variant : Variant
    settings : Train
    seed : int
        Decides on the order of the images and on their augmentation.
    splits : mapping
        ``"train"`` and ``"validation"``, which may be empty.
    steps : int
        Of the optimiser; each advances `progress`.
    steps_at_once : int
        The largest number of steps between two looks at the clock.
    progress : Progress
    checkpoints : Checkpoints

    Raises
    ------
    TrainingError
        If the loss is not finite, or a batch does not fit in memory.
    """
    images = len(splits["train"].labels)
    batch_size = variant.batch_size
    steps_per_epoch = images // batch_size
    schedule = variant.schedule or settings.schedule
    validation_labels = splits["validation"].labels
    history = History()

    def rate_at(step: int) -> float:
        return variant.learning_rate * schedule.factor(step, steps, steps_per_epoch)

    def position() -> dict[str, float]:
        return {"step": learner.step, "epoch": learner.step * batch_size / images}

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
        progress.skip(saved.step)
        print(f"seed {seed}: resuming after step {saved.step:,} of {steps:,}", flush=True)

    ends = [settings.log_every_steps, steps_per_epoch, checkpoints.interval.steps or steps]
    blocks = divide(learner.step + 1, steps, steps_at_once, ends)
    ahead = batches(splits["train"], batch_size, seed, blocks, variant.augmentation)
    for block, (some_images, labels) in zip(blocks, ahead, strict=True):
        rates = [rate_at(step) for step in block]
        try:
            learner.learn(some_images, labels, rates)
        except (tf.errors.ResourceExhaustedError, MemoryError) as error:
            raise TrainingError(
                f"out of memory at step {block[0]:,}: a batch of {batch_size:,} does not fit; "
                "lower the variant's batch_size"
            ) from error
        step = learner.step
        if step % settings.log_every_steps == 0 or step == steps:
            stop_unless_finite()
            history.train.append(
                {**position(), "learning_rate": rates[-1], **learner.running.take()._asdict()}
            )
        if validation_labels.size and (step % steps_per_epoch == 0 or step == steps):
            with learner.averaged():
                means, logits = validate()
            stop_unless_finite(all_is=bool(np.isfinite(means.loss)))
            history.validation.append({**position(), **means._asdict()})
            if step == steps:
                history.temperature = fit_temperature(logits, validation_labels)
        progress.advance(len(block), _detail(history))
        if step == steps or checkpoints.is_due(step):
            save_checkpoint()
    if learner.average is not None:
        learner.average.swap()
    return history


def _detail(history: History) -> str:
    """Return the newest loss, and the newest validation accuracy, for the progress line."""
    parts = [f"loss {row['loss']:.4f}" for row in history.train[-1:]]
    parts += [f"validation accuracy {row['accuracy']:.2%}" for row in history.validation[-1:]]
    return ", ".join(parts)


def curve(histories: Mapping[int, History], split: str) -> str:
    """Return the curves on a split as CSV: first the seed, numbers with six significant digits."""
    rows = [
        (seed, *(row[name] for name in COLUMNS[split]))
        for seed, history in histories.items()
        for row in getattr(history, split)
    ]
    lines = [
        ",".join(["seed", *COLUMNS[split]]),
        *(",".join(map(_six_digits, row)) for row in rows),
    ]
    return "".join(f"{line}\n" for line in lines)


def _six_digits(number: float) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)
