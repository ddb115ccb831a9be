import csv
import io
import math
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.core.errors import TrainingError
from pipeline.core.progress import Progress
from pipeline.network.build import build
from pipeline.training.checkpoint import Checkpoints, Interval
from pipeline.training.learner import Learner
from pipeline.training.loop import History, curve, train
from pipeline.training.recipe import Schedule, Train, Variant
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


def variant(learning_rate: float = 0.01) -> Variant:
    row = network({"type": "dense", "units": 8}, {"type": "dropout", "rate": 0.3})
    return Variant.model_validate(
        row.model_dump(exclude_none=True)
        | {
            "input_size": None,
            "budget": {"epochs": 1},
            "batch_size": 4,
            "learning_rate": learning_rate,
        }
    )


def run(folder: Path, row: Variant, interval: int = 100) -> tuple[keras.Model, History]:
    """Train for `STEPS`, with a checkpoint every `interval` steps."""
    built = build(describe(row.network(), (SIDE, SIDE, 1), CLASSES))
    history = train(
        built, row, SETTINGS, 0, {"train": SPLIT, "validation": SPLIT}, STEPS,
        Progress("t", STEPS, "steps", rate_unit="images", stream=io.StringIO()),
        Checkpoints(folder, Interval(steps=interval)),
    )  # fmt: skip
    return built, history


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


def test_an_interrupted_training_resumes_to_the_same_bits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A training that stops between two checkpoints resumes to the same curves and weights."""
    whole, expected = run(tmp_path / "whole", variant())
    learn = Learner.learn

    def stop_at_eleven(learner: Learner, *batch: Any) -> None:
        if learner.step == 10:
            raise KeyboardInterrupt
        learn(learner, *batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Learner, "learn", stop_at_eleven)
        run(tmp_path / "stopped", variant(), interval=3)
    resumed, history = run(tmp_path / "stopped", variant(), interval=3)
    assert "seed 0: resuming after step 9 of 15" in capsys.readouterr().out
    assert history == expected
    for one, two in zip(resumed.get_weights(), whole.get_weights(), strict=True):
        np.testing.assert_array_equal(one, two)


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    """A loss that is not finite stops training with the step, the rate and the last checkpoint."""
    with pytest.raises(TrainingError, match="non-finite loss at step 2, at learning rate 1e") as (
        error
    ):
        run(tmp_path, variant(1e30), interval=1)
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
    history = History(train=[{"step": 20, "loss": math.pi}])
    assert list(csv.reader(io.StringIO(curve({0: history, 4: history}, "train")))) == [
        ["seed", "step", "loss"],
        ["0", "20", "3.14159"],
        ["4", "20", "3.14159"],
    ]
