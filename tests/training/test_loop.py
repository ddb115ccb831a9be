import csv
import io
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from scipy.special import softmax
from sklearn.metrics import log_loss

from pipeline.core.errors import TrainingError
from pipeline.core.progress import Progress
from pipeline.datasets.splits import Split
from pipeline.network.build import build
from pipeline.training.checkpoint import Checkpoints, Interval
from pipeline.training.learner import Learner, make_validation
from pipeline.training.loop import History, curve, train
from pipeline.training.recipe import Schedule, Train, Variant
from pipeline.training.temperature import fit_temperature
from tests.helpers import CLASSES, SIDE, make_images
from tests.network.helpers import describe, network

SPLIT = make_images(24)
STEPS = 15  # 2½ epochs of 6 batches
SETTINGS = Train(
    seeds=[0],
    precision="float32",
    schedule=Schedule(warmup=0, decay="constant"),
    log_every_steps=4,
)


DROPOUT = {"type": "dropout", "rate": 0.3}
DENSE = {"type": "dense", "units": 8}
CONV = {"type": "conv", "filters": 4, "kernel": 3, "activation": "linear"}
NORM = {"type": "batch_norm", "momentum": 0.9}


def variant(*layers: dict[str, object], **settings: object) -> Variant:
    """Return a variant of some layers, or of a dense one with dropout."""
    row = network(*(layers or (DENSE, DROPOUT)))
    return Variant.model_validate(
        row.model_dump(exclude_none=True)
        | {"input_size": None, "budget": {"epochs": 1}, "batch_size": 4, "learning_rate": 0.01}
        | settings
    )


def run(
    folder: Path,
    row: Variant,
    interval: int = 100,
    at_once: int = 1,
    validation: Split = SPLIT,
) -> tuple[keras.Model, History]:
    """Train for `STEPS`, with a checkpoint every `interval` steps."""
    built = build(describe(row.network(), (SIDE, SIDE, 1), CLASSES))
    history = train(
        Learner(built, row.batch_size, row.averaging),
        make_validation(built, validation, row.batch_size),
        row, SETTINGS, 0, {"train": SPLIT, "validation": validation}, STEPS, at_once,
        Progress("t", STEPS, "steps", rate_unit="images", stream=io.StringIO()),
        Checkpoints(folder, Interval(steps=interval)),
    )  # fmt: skip
    return built, history


def assert_same_weights(first: keras.Model, second: keras.Model) -> None:
    for one, two in zip(first.get_weights(), second.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_curves_have_a_row_per_interval_and_per_epoch(tmp_path: Path) -> None:
    """Training has a row every few steps, validation one per epoch, and both one at the end."""
    built, history = run(tmp_path, variant())
    assert [row["step"] for row in history.train] == [4, 8, 12, 15]
    assert [row["step"] for row in history.validation] == [6, 12, 15]
    assert [row["epoch"] for row in history.validation] == [1, 2, 2.5]
    assert {row["learning_rate"] for row in history.train} == {0.01}
    logits = built(SPLIT.images).numpy()
    accuracy = (logits.argmax(axis=1) == SPLIT.labels).mean()
    assert history.validation[-1]["accuracy"] == pytest.approx(accuracy)


EVERYTHING = {
    "averaging": 0.9,
    "augmentation": {"rotate": 15, "shear": 5, "zoom": 0.1, "shift": 0.1, "cutout": 2},
}
VARIANTS = {
    "plain": variant(),
    "batch norm": variant(CONV, NORM, DROPOUT),
    "averaging": variant(averaging=0.9),
    "augmentation": variant(augmentation=EVERYTHING["augmentation"]),
    "everything": variant(CONV, NORM, DROPOUT, DENSE, NORM, **EVERYTHING),
}


@pytest.mark.parametrize("name", VARIANTS)
def test_an_interrupted_training_resumes_to_the_same_bits(
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A training that stops between two checkpoints resumes to the same curves and weights."""
    row = VARIANTS[name]
    whole, expected = run(tmp_path / "whole", row)
    learn = Learner.learn

    def stop_at_eleven(learner: Learner, *batch: Any) -> None:
        if learner.step == 10:
            raise KeyboardInterrupt
        learn(learner, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "learn", stop_at_eleven)
        run(tmp_path / "stopped", row, interval=3)
    resumed, history = run(tmp_path / "stopped", row, interval=3)
    assert "seed 0: resuming after step 9 of 15" in capsys.readouterr().out
    assert history == expected
    assert_same_weights(resumed, whole)


@pytest.mark.parametrize("name", ["plain", "everything"])
def test_a_training_resumed_at_its_end_has_its_results(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """From its last checkpoint a training has nothing to do, and ends with the same results."""
    whole, expected = run(tmp_path, VARIANTS[name])
    again, history = run(tmp_path, VARIANTS[name])
    assert "resuming after step 15 of 15" in capsys.readouterr().out
    assert history == expected
    assert_same_weights(again, whole)


@pytest.mark.parametrize("at_once", [2, 5, 100])
def test_steps_made_at_once_change_no_result(tmp_path: Path, at_once: int) -> None:
    """However many steps are made in one call, curves, checkpoints and weights are the same."""
    row = VARIANTS["everything"]
    one_by_one, expected = run(tmp_path / "1", row, interval=3)
    together, history = run(tmp_path / "2", row, interval=3, at_once=at_once)
    assert history == expected
    assert_same_weights(together, one_by_one)
    names = [sorted(path.name for path in (tmp_path / each).iterdir()) for each in "12"]
    assert names[0] == names[1]


def test_the_averaged_weights_are_validated_and_kept(tmp_path: Path) -> None:
    """With an average, validation and the network in the end have the averaged weights."""
    plain, alone = run(tmp_path / "plain", variant(CONV, NORM))
    averaged, history = run(tmp_path / "averaged", variant(CONV, NORM, averaging=0.8))
    assert history.train == alone.train
    assert history.validation != alone.validation
    for built, curves in ((plain, alone), (averaged, history)):
        logits = built(SPLIT.images, training=False).numpy().astype(float)
        expected = log_loss(SPLIT.labels, softmax(logits, axis=1))
        assert curves.validation[-1]["loss"] == pytest.approx(expected, rel=1e-4)
    newest = Checkpoints(tmp_path / "averaged", Interval(steps=1)).newest()
    assert newest is not None
    for weight, raw in zip(averaged.weights, plain.weights, strict=True):
        np.testing.assert_array_equal(newest.arrays[f"{weight.path}/average"], weight.numpy())
        np.testing.assert_array_equal(newest.arrays[weight.path], raw.numpy())


def test_augmented_images_are_trained_on_and_not_validated(tmp_path: Path) -> None:
    """Augmentation changes what is trained on, and the validation split stays as it is."""
    row = variant(augmentation={"rotate": 180, "shift": 0.5, "cutout": 6})
    built, history = run(tmp_path / "augmented", row)
    _, plain = run(tmp_path / "plain", variant())
    assert history.train[0]["loss"] != plain.train[0]["loss"]
    logits = built(SPLIT.images).numpy().astype(float)
    expected = log_loss(SPLIT.labels, softmax(logits, axis=1))
    assert history.validation[-1]["loss"] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("averaging", [None, 0.8])
def test_the_temperature_is_that_of_the_trained_network(
    tmp_path: Path, averaging: float | None
) -> None:
    """The temperature is fitted to the logits of the validation split in the end."""
    built, history = run(tmp_path, variant(averaging=averaging))
    logits = built(SPLIT.images).numpy()
    assert history.temperature == pytest.approx(fit_temperature(logits, SPLIT.labels), rel=1e-3)
    assert history.temperature != 1


def test_without_validation_images_a_training_has_no_such_curve(tmp_path: Path) -> None:
    """With an empty validation split there is no validation and no temperature."""
    nothing = Split(SPLIT.images[:0], SPLIT.labels[:0])
    built, history = run(tmp_path / "without", variant(), validation=nothing)
    expected, usual = run(tmp_path / "with", variant())
    assert (history.validation, history.temperature) == ([], 1.0)
    assert history.train == usual.train
    assert_same_weights(built, expected)


def test_a_variants_own_schedule_holds(tmp_path: Path) -> None:
    """A variant's schedule takes the place of the common one, and counts epochs of its own."""
    schedule = {"warmup": 0.0, "decay": "exponential", "per_epoch": 0.5}
    _, history = run(tmp_path, variant(schedule=schedule))
    assert [row["learning_rate"] for row in history.train] == [0.01, 0.005, 0.005, 0.0025]


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    """A loss that is not finite stops training with the step, the rate and the last checkpoint."""
    with pytest.raises(TrainingError, match="non-finite loss at step 2, at learning rate 1e") as (
        error
    ):
        run(tmp_path, variant(learning_rate=1e30), interval=1)
    last_good = Checkpoints(tmp_path, Interval(steps=1)).newest_path()
    assert last_good is not None
    assert last_good.name.startswith("step_000000001-")
    assert str(error.value).endswith(f"the last good checkpoint is {last_good}")


@pytest.mark.parametrize(
    "fault", [tf.errors.ResourceExhaustedError(None, None, "OOM"), MemoryError()]
)
def test_a_batch_that_does_not_fit_is_one_clear_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: Exception
) -> None:
    """If a batch does not fit in memory, the error says so and suggests a fix."""

    def run_out(*_: object) -> None:
        raise fault

    monkeypatch.setattr(Learner, "learn", run_out)
    with pytest.raises(TrainingError, match="at step 1: a batch of 4 does not fit; lower the var"):
        run(tmp_path, variant())


def test_a_curve_is_csv_with_a_row_per_seed_and_step() -> None:
    """A curve is CSV: a header, then a row for each seed and step, with six digits."""
    row = {"step": 20, "epoch": 2.5, "learning_rate": 0.1, "loss": math.pi, "accuracy": 2 / 3}
    history = History(train=[row], validation=[row])
    assert list(csv.reader(io.StringIO(curve({0: history, 4: history}, "train")))) == [
        ["seed", "step", "epoch", "learning_rate", "loss", "accuracy"],
        ["0", "20", "2.5", "0.1", "3.14159", "0.666667"],
        ["4", "20", "2.5", "0.1", "3.14159", "0.666667"],
    ]
    assert curve({0: history}, "validation").splitlines() == [
        "seed,step,epoch,loss,accuracy", "0,20,2.5,3.14159,0.666667",
    ]  # fmt: skip


def test_an_empty_curve_is_a_header() -> None:
    """Without rows a curve still has its columns."""
    assert curve({0: History()}, "validation") == "seed,step,epoch,loss,accuracy\n"
