import csv
import io
import json
import math
import re
import shutil
import subprocess
import time
from pathlib import Path

import pandas as pd
import pytest

from benchmarks.processes import stage_command
from pipeline import download, model, paths, preprocess, train
from pipeline.checkpoint import Checkpoints, Interval
from pipeline.errors import TrainingError
from pipeline.progress import Progress
from pipeline.variants import Schedule, Variant
from tests.conftest import (
    assert_one_clear_line,
    edit_params,
    environment,
    make_images,
    no_parts,
    run_stage,
)

RESULTS = (
    paths.model("tiny", "tiny_conv", 0),
    paths.history("tiny", "tiny_conv", "train"),
    paths.history("tiny", "tiny_conv", "validation"),
)


@pytest.fixture
def prepared(project: Path) -> Path:
    download.main("tiny")
    preprocess.main("tiny")
    return project


def describe(row: Variant) -> model.Description:
    return model.Description(
        dataset="tiny",
        variant="tiny_conv",
        image_shape=[12, 12, 1],
        classes=3,
        network=row.network(),
    )


def test_both_loops_train_and_leave_their_results(prepared: Path) -> None:
    """A sample budget and a number of epochs both train, with curves, summary and model."""
    for variant, steps in (("tiny_conv", 99), ("tiny_dense", 4 * (90 // 16))):
        train.main("tiny", variant)
        summary = json.loads(paths.training("tiny", variant).read_text())
        assert summary["steps"] == steps
        assert summary["samples"] == 16 * steps
        assert summary["device"].startswith(("CPU", "GPU"))
        assert summary["precision"] in ("float32", "mixed_bfloat16")
        curve = pd.read_csv(paths.history("tiny", variant, "train"))
        assert curve["step"].tolist() == [*range(20, steps, 20), *([99] if steps == 99 else [20])]
        validation = pd.read_csv(paths.history("tiny", variant, "validation"))
        assert validation["step"].tolist() == [
            *range(5, steps, 5),
            *([99] if steps == 99 else [20]),
        ]
        assert validation["accuracy"].iloc[-1] > 0.9
        assert model.load(paths.model("tiny", variant, 0)).description.dataset == "tiny"


def test_the_same_seed_gives_the_same_bytes(prepared: Path) -> None:
    """The same seed twice gives identical model and curves; another seed gives others."""
    first, again, other = (train_with(seeds) for seeds in ([0], [0], [1]))
    assert first == again
    assert first["seed_0.safetensors"] != other["seed_1.safetensors"]


def train_with(seeds: list[int]) -> dict[str, bytes]:
    """Train with seeds of the variant's own; return the bytes of models and curves by name."""
    edit_params(
        paths.PARAMS, lambda params: params["variants"]["tiny_conv"].update({"seeds": seeds})
    )
    train.main("tiny", "tiny_conv")
    files = [paths.history("tiny", "tiny_conv", name) for name in ("train", "validation")]
    files += paths.models("tiny", "tiny_conv").iterdir()
    return {path.name: path.read_bytes() for path in files}


def test_each_seed_is_a_training_of_its_own(prepared: Path) -> None:
    """Several seeds give the models and curves that each alone gives, and their mean."""
    alone = [train_with([seed]) for seed in (0, 3)]
    together = train_with([0, 3])
    assert set(together) == {
        "train.csv", "validation.csv", "seed_0.safetensors", "seed_3.safetensors",
    }  # fmt: skip
    for name in ("seed_0.safetensors", "seed_3.safetensors"):
        assert together[name] in [each.get(name) for each in alone]
    for name in ("train.csv", "validation.csv"):
        header, *rows = alone[0][name].splitlines()
        assert together[name].splitlines() == [header, *rows, *alone[1][name].splitlines()[1:]]
    summary = json.loads(paths.training("tiny", "tiny_conv").read_text())
    curve = pd.read_csv(paths.history("tiny", "tiny_conv", "validation"))
    last = curve[curve["step"] == summary["steps"]]
    assert summary["seeds"] == last["seed"].tolist() == [0, 3]
    assert summary["validation_accuracy"] == pytest.approx(last["accuracy"].mean(), abs=1e-6)


def test_no_model_of_an_earlier_training_stays(prepared: Path) -> None:
    """A model of a seed that is no longer trained is removed."""
    train_with([0, 1])
    assert set(train_with([1])) == {"train.csv", "validation.csv", "seed_1.safetensors"}


def test_a_data_sets_budget_replaces_the_variants_own(prepared: Path) -> None:
    """A data set may give the budget of the variants that count samples."""

    def change(params: dict) -> None:  # type: ignore[type-arg]
        params["datasets"]["tiny"]["train"]["samples"] = 50

    edit_params(prepared / "params.yaml", change)
    train.main("tiny", "tiny_conv")
    assert json.loads(paths.training("tiny", "tiny_conv").read_text())["steps"] == 3


def test_a_loss_that_is_not_finite_stops_the_training(tmp_path: Path) -> None:
    """A loss that is no number stops the training, with step, rate and last good checkpoint."""
    row = Variant.model_validate(
        {
            "input_size": None, "initializer": {"type": "he_normal"}, "layers": [
                {"type": "dense", "units": 8}, {"type": "dense", "units": 8}],
            "budget": {"epochs": 1}, "batch_size": 4, "learning_rate": 1e30,
        }
    )  # fmt: skip
    settings = train.Train(
        seeds=[0],
        precision="float32",
        schedule=Schedule(warmup=0, decay="constant"),
        log_every_steps=2,
        checkpoint_every=Interval(steps=1),
    )
    split = make_images(12)
    progress = Progress("t", 3, "steps", rate_unit="images", stream=io.StringIO())
    checkpoints = Checkpoints(tmp_path, settings.checkpoint_every)
    with pytest.raises(TrainingError, match="no finite number at step 2, at learning") as error:
        train.train(
            model.build(describe(row)), row, settings, 0, {"train": split, "validation": split},
            3, progress, checkpoints,
        )  # fmt: skip
    last_good = checkpoints.newest_path()
    assert last_good is not None
    assert last_good.name.startswith("step_000000001-")
    assert str(error.value).endswith(f"the last good checkpoint is {last_good}")


def test_a_curve_has_one_row_for_each_moment() -> None:
    """A curve is CSV with a header and a row for each seed and moment."""
    trained = train.Trained(train.History(train=[{"step": 20, "loss": math.pi}]), train.Took())
    assert list(csv.reader(io.StringIO(train.curve({0: trained, 4: trained}, "train")))) == [
        ["seed", "step", "loss"],
        ["0", "20", "3.14159"],
        ["4", "20", "3.14159"],
    ]


def test_the_summary_leaves_the_first_step_out_of_the_speed() -> None:
    """Speed counts the steps after the one that compiles."""
    history = train.History(validation=[{"step": 11, "epoch": 0.5, "loss": 1.0, "accuracy": 0.5}])
    trained = train.Trained(history, train.Took(12.0, 1.0, steady_seconds=10.0, steady_steps=10))
    summary = train.summarise({0: trained}, parameters=5, batch_size=64)
    assert summary["images_per_second"] == 64.0
    assert summary["samples"] == 704


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("variants.tiny_conv.batch_size", 91, "batch_size 91 is larger than the training set of 90"),
        ("variants.tiny_conv.learning_rate", -1, "learning_rate: input should be greater than 0"),
        ("variants.tiny_conv.budget", {"samples": 0}, "budget.samples: input should be greater"),
        ("variants.tiny_conv.layers", [{"type": "conv", "filters": 2, "kernel": 13,
            "padding": "valid"}], "a conv of 13×13 leaves less than one pixel of a 12×12 image"),
        ("train.precision", "float23", "did you mean 'float32'"),
        ("train.sede", 1, "unknown key 'sede'; did you mean 'seeds'"),
        ("train.seeds", [], "train.seeds: list should have at least 1 item"),
        ("variants.tiny_conv.seeds", [1, 1], "seeds: expected each seed once, received 1 twice"),
    ],
)  # fmt: skip
def test_bad_params_are_one_clear_line_and_write_nothing(
    prepared: Path, key: str, value: object, message: str
) -> None:
    """What cannot be trained is refused in one line, and nothing is written."""

    def change(params: dict) -> None:  # type: ignore[type-arg]
        *path, last = key.split(".")
        for step in path:
            params = params[step]
        params[last] = value

    edit_params(prepared / "params.yaml", change)
    assert_one_clear_line(run_stage("train", "tiny", "tiny_conv", cwd=prepared), message)
    assert not any(path.exists() for path in RESULTS)
    assert no_parts(prepared)


@pytest.mark.slow
def test_an_unwritable_folder_is_refused_before_training(prepared: Path) -> None:
    """A folder that cannot be written is named before the first step."""
    (prepared / "models").write_text("not a folder")
    result = run_stage("train", "tiny", "tiny_conv", cwd=prepared)
    assert_one_clear_line(result, "models/tiny/tiny_conv/seed_0.safetensors: cannot be written")
    assert "steps of" not in result.stdout


@pytest.mark.slow
def test_a_training_that_is_killed_goes_on_to_the_same_bytes(prepared: Path) -> None:
    """Killed between two checkpoints of the second seed, and run again: the same bytes."""
    edit_params(paths.PARAMS, lambda params: params["train"].update(checkpoint_every={"steps": 10}))
    whole = train_with([0, 1])
    shutil.rmtree(paths.models("tiny", "tiny_conv"))
    process = subprocess.Popen(
        stage_command("train", "tiny", "tiny_conv"), env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = paths.checkpoints("tiny", "tiny_conv")
    while not list(folder.rglob("seed_1/step_000000040-*.safetensors")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    # What a stage leaves in place, DVC would have removed.
    shutil.rmtree(paths.models("tiny", "tiny_conv"), ignore_errors=True)
    done = run_stage("train", "tiny", "tiny_conv")
    assert "seed 0: goes on after step 99 of 99" in done.stdout, done.stderr
    assert re.search(r"seed 1: goes on after step [4-9]0 of 99", done.stdout)
    files = [paths.history("tiny", "tiny_conv", name) for name in ("train", "validation")]
    files += paths.models("tiny", "tiny_conv").iterdir()
    assert {path.name: path.read_bytes() for path in files} == whole
    assert not list(folder.glob("*/"))


def test_a_checkpoint_of_other_params_is_not_used(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a parameter has changed, a training begins anew."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "write_json", lambda *_: 1 / 0)
        train.main("tiny", "tiny_conv")
    capsys.readouterr()
    edit_params(
        paths.PARAMS,
        lambda params: params["variants"]["tiny_conv"].update({"learning_rate": 0.02}),
    )
    train.main("tiny", "tiny_conv")
    assert "goes on" not in capsys.readouterr().out


def test_a_training_that_could_not_write_goes_on_from_its_end(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the results could not be written, the next run has nothing to train again."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "write_json", lambda *_: 1 / 0)
        train.main("tiny", "tiny_conv")
    first = paths.model("tiny", "tiny_conv", 0).read_bytes()
    train.main("tiny", "tiny_conv")
    assert "goes on after step 99 of 99" in capsys.readouterr().out
    assert paths.model("tiny", "tiny_conv", 0).read_bytes() == first
