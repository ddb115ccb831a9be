"""Train a variant on a data set, for its budget of samples or epochs.

A training that is killed goes on from its last checkpoint, to the bytes that it would have had.
"""

import os
import statistics
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

import numpy as np

from pipeline import checkpoint, model, paths
from pipeline.batches import BatchOrder
from pipeline.checkpoint import Checkpoint, Checkpoints, Interval
from pipeline.data import Classes, Split, map_split
from pipeline.device import Device, Precision, find_device
from pipeline.errors import TrainingError
from pipeline.files import require_writable, sha256, write_json, write_text
from pipeline.framework import keras, tf
from pipeline.learner import Learner, make_validation
from pipeline.params import Params, Section
from pipeline.progress import Progress
from pipeline.stage import imported_code, require_unchanged, run_stage
from pipeline.variants import BudgetOverride, PositiveInt, Schedule, Seeds, Variant, count_steps


class Train(Section):
    """How every variant is trained: once for each of ``seeds``, if it has none of its own."""

    seeds: Seeds
    precision: Precision
    schedule: Schedule
    log_every_steps: PositiveInt
    checkpoint_every: Interval


@dataclass
class History:
    """Learning curves: one row every few steps for training, one an epoch for validation."""

    train: list[dict[str, float]] = field(default_factory=list)
    validation: list[dict[str, float]] = field(default_factory=list)


@dataclass
class Took:
    """How long a training took, over all processes that had a part in it.

    A process's first step, which compiles, counts as training, but not as steady.
    """

    training_seconds: float = 0.0
    validation_seconds: float = 0.0
    steady_seconds: float = 0.0
    steady_steps: int = 0


class Trained(NamedTuple):
    """What a training leaves: its curves, and how long it took."""

    history: History
    took: Took


@contextmanager
def _stopwatch(took: Took, name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    setattr(took, name, getattr(took, name) + time.perf_counter() - begin)


def train(
    network: keras.Model,
    variant: Variant,
    settings: Train,
    seed: int,
    splits: Mapping[str, Split],
    steps: int,
    progress: Progress,
    checkpoints: Checkpoints,
) -> Trained:
    """Train `network` in place, from its newest checkpoint if it has one.

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
    checkpoints : Checkpoints
        Of this very training.

    Raises
    ------
    TrainingError
        If the loss is no longer a finite number, or a batch does not fit in memory.
    """
    images, labels = splits["train"]
    batch_size = variant.batch_size
    steps_per_epoch = len(labels) // batch_size
    learner = Learner(network, batch_size)
    validate = make_validation(network, splits["validation"], batch_size)
    order = BatchOrder(len(labels), seed)
    history, took = History(), Took()

    def rate_at(step: int) -> float:
        return variant.learning_rate * settings.schedule.factor(step, steps)

    def moment() -> dict[str, float]:
        return {"step": learner.step, "epoch": learner.step * batch_size / len(labels)}

    def stop_unless_finite(*, all_is: bool = True) -> None:
        bad = learner.first_bad_step or (0 if all_is else learner.step)
        if bad:
            last_good = checkpoints.newest_path()
            raise TrainingError(
                f"the loss was no finite number at step {bad:,}, at learning rate "
                f"{rate_at(bad):.3g}: lower the learning rate or lengthen the warm-up; the last "
                f"good checkpoint is {last_good or 'none yet'}"
            )

    def save_checkpoint() -> None:
        arrays = learner.arrays()
        stop_unless_finite(all_is=checkpoint.are_finite(arrays))
        notes = {"history": asdict(history), "took": asdict(took)}
        checkpoints.save(Checkpoint(learner.step, arrays, notes))

    if saved := checkpoints.newest():
        learner.restore(saved.step, saved.arrays)
        history, took = History(**saved.notes["history"]), Took(**saved.notes["took"])
        for _ in range(saved.step):  # the order is a function of seed and step
            order.next_batch(batch_size)
        progress.skip(saved.step)
        print(f"seed {seed}: goes on after step {saved.step:,} of {steps:,}", flush=True)

    first_step = learner.step + 1
    for step in range(first_step, steps + 1):
        begin = time.perf_counter()
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
                {**moment(), "learning_rate": rate, **learner.running.take()._asdict()}
            )
        seconds = time.perf_counter() - begin
        took.training_seconds += seconds
        if step > first_step:
            took.steady_seconds += seconds
            took.steady_steps += 1
        if step % steps_per_epoch == 0 or step == steps:
            with _stopwatch(took, "validation_seconds"):
                measured = validate()
            stop_unless_finite(all_is=bool(np.isfinite(measured.loss)))
            history.validation.append({**moment(), **measured._asdict()})
        progress.advance(1, _detail(history))
        if step == steps or checkpoints.is_due(step):
            with _stopwatch(took, "training_seconds"):
                save_checkpoint()
    return Trained(history, took)


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
    lines = [",".join(rows[0]), *(",".join(map(_six_digits, row.values())) for row in rows)]
    return "".join(f"{line}\n" for line in lines)


def _six_digits(number: float) -> str:
    return f"{number:.6g}" if isinstance(number, float) else str(number)


def summarise(trainings: Mapping[int, Trained], parameters: int, batch_size: int) -> dict[str, Any]:
    """Return what a training took and reached, the mean over seeds; seconds without validation."""
    took = [each.took for each in trainings.values()]
    last = [each.history.validation[-1] for each in trainings.values()]
    steps = int(last[0]["step"])
    speeds = [each.steady_steps * batch_size / (each.steady_seconds or 1) for each in took]

    return {
        "seeds": list(trainings),
        "parameters": parameters,
        "steps": steps,
        "samples": steps * batch_size,
        "epochs": round(last[0]["epoch"], 4),
        "validation_loss": round(statistics.mean(row["loss"] for row in last), 6),
        "validation_accuracy": round(statistics.mean(row["accuracy"] for row in last), 6),
        "seconds": round(statistics.mean(each.training_seconds for each in took), 1),
        "validation_seconds": round(statistics.mean(each.validation_seconds for each in took), 1),
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
    strategy = device.strategy(row.batch_size)
    tf.config.experimental.enable_op_determinism()
    description = model.Description(
        dataset=dataset,
        variant=variant,
        image_shape=list(images.shape[1:]),
        classes=classes,
        network=row.network(),
    )
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    key = checkpoint.key_of(
        {
            "code": sorted(imported_code().values()),
            "data": {
                f"{split}/{name}": sha256(paths.prepared(dataset, split) / f"{name}.npy")
                for split in splits
                for name in Split._fields
            },
            "params": [each.model_dump() for each in (row, settings, override)],
            "classes": classes,
            "machine": _machine(device, precision),
            "versions": versions | {"numpy": np.__version__},
        }
    )
    print(
        f"{dataset}/{variant}: {description.parameters:,} parameters, {steps:,} steps of "
        f"{row.batch_size}, {f'{len(seeds)} seeds, ' if len(seeds) > 1 else ''}"
        f"{precision} on the {device}",
        flush=True,
    )
    trainings = {}
    with checkpoint.exclusive(paths.checkpoints(dataset, variant), key) as folder:
        model.remove_all(paths.models(dataset, variant))
        with Progress(
            f"train {dataset}/{variant}",
            steps * len(seeds),
            "steps",
            rate_unit="images",
            rate_per_unit=row.batch_size,
        ) as progress:
            for seed in seeds:
                with strategy.scope():
                    network = model.build(description, seed=seed, precision=precision)
                    trainings[seed] = train(
                        network, row, settings, seed, splits, steps, progress,
                        Checkpoints(folder / f"seed_{seed}", settings.checkpoint_every),
                    )  # fmt: skip
                model.save(paths.model(dataset, variant, seed), network, description)

        for name in splits:
            write_text(paths.history(dataset, variant, name), curve(trainings, name))
        write_json(
            paths.training(dataset, variant),
            summarise(trainings, description.parameters, row.batch_size)
            | {"precision": precision, "device": str(device), "versions": versions},
        )
        require_unchanged(params)  # else the checkpoints stay, for when the change is taken back


def _machine(device: Device, precision: str) -> dict[str, Any]:
    """Return what of the machine may change a sum's last bit."""
    return {
        "device": str(device),
        "precision": precision,
        "threads": os.cpu_count() if device.kind == "CPU" else None,
    }


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
