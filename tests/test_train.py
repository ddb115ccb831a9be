import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from scipy.special import softmax
from sklearn.metrics import log_loss

from pipeline import download, preprocess, train
from pipeline.core import paths
from pipeline.datasets.splits import map_split
from pipeline.network import storage
from pipeline.network.device import Device
from pipeline.training.loop import History
from pipeline.training.temperature import fit_temperature
from tests.helpers import (
    assert_one_clear_line,
    edit_params,
    environment,
    no_parts,
    run_stage,
    stage_command,
)

CURVES = ("curve_train.csv", "curve_validation.csv")


@pytest.fixture
def prepared(project: Path) -> Path:
    download.main("tiny")
    preprocess.main("tiny")
    return project


def test_both_kinds_of_budget_train_and_leave_their_results(prepared: Path) -> None:
    """Samples and epochs both train, and leave curves, a summary and a model."""
    for variant, steps in (("tiny_conv", 99), ("tiny_dense", 4 * (90 // 16))):
        train.main("tiny", variant)
        summary = json.loads(paths.training("tiny", variant).read_text())
        assert summary["steps"] == steps
        assert summary["samples"] == 16 * steps
        assert summary["precision"] in ("float32", "mixed_bfloat16")
        curve = pd.read_csv(paths.curve("tiny", variant, "train"))
        assert curve["step"].tolist() == [*range(20, steps, 20), steps]
        validation = pd.read_csv(paths.curve("tiny", variant, "validation"))
        assert validation["step"].tolist() == [*range(5, steps, 5), steps]
        assert validation["accuracy"].iloc[-1] > 0.9
        model = storage.load(paths.model("tiny", variant, 0))
        assert (model.description.dataset, model.description.variant) == ("tiny", variant)
        assert summary["parameters"] == model.network.count_params()


def set_variant(**settings: object) -> None:
    edit_params(paths.PARAMS, lambda params: params["variants"]["tiny_conv"].update(settings))


def set_dataset(**settings: object) -> None:
    edit_params(paths.PARAMS, lambda params: params["datasets"]["tiny"].update(settings))


def test_a_model_has_its_temperature_and_the_names_of_its_classes(prepared: Path) -> None:
    """The header has the temperature of the validation images, and the classes' names if known."""
    train.main("tiny", "tiny_dense")
    path = paths.model("tiny", "tiny_dense", 0)
    network, description = storage.load(path)
    assert description.class_names is None
    images, labels = map_split(paths.prepared("tiny", "validation"))
    expected = fit_temperature(network(images).numpy(), labels)
    assert description.temperature == pytest.approx(expected, rel=1e-2)
    assert description.temperature != 1
    set_dataset(classes=["cat", "dog", "cow"])
    train.main("tiny", "tiny_dense")
    assert storage.load(path).description.class_names == ["cat", "dog", "cow"]


@pytest.mark.slow
def test_the_published_recipes_parts_train_together(prepared: Path) -> None:
    """Batch norm, augmentation, averaging and a schedule of its own give a model without a norm."""
    set_variant(
        layers=[
            {"type": "conv", "filters": 8, "kernel": 3, "activation": "linear"},
            {"type": "batch_norm"},
            {"type": "max_pool", "size": 2, "stride": 2},
            {"type": "dense", "units": 8, "activation": "linear"},
            {"type": "batch_norm"},
            {"type": "dropout", "rate": 0.1},
        ],
        augmentation={"rotate": 5, "zoom": 0.1, "shift": 0.05, "cutout": 2},
        averaging=0.9,
        schedule={"warmup": 0.1, "decay": "exponential", "per_epoch": 0.95},
        seeds=[0, 1],
    )
    edit_params(paths.PARAMS, lambda params: params["train"].update(precision="float32"))
    train.main("tiny", "tiny_conv")
    summary = json.loads(paths.training("tiny", "tiny_conv").read_text())
    assert summary["validation_accuracy"] > 0.9
    curve = pd.read_csv(paths.curve("tiny", "tiny_conv", "train"))
    assert curve["learning_rate"].iloc[-1] == pytest.approx(0.01 * 0.95 ** (98 // 5), rel=1e-5)
    split = map_split(paths.prepared("tiny", "validation"))
    losses = []
    for seed in (0, 1):
        network, description = storage.load(paths.model("tiny", "tiny_conv", seed))
        kinds = [layer.type for layer in description.network.layers]
        assert kinds == ["conv", "max_pool", "dense", "dropout"]
        probabilities = softmax(network(split.images).numpy().astype(float), axis=1)
        losses.append(log_loss(split.labels, probabilities))
    assert summary["validation_loss"] == pytest.approx(sum(losses) / 2, rel=1e-3)


def test_all_images_may_be_trained_on(project: Path) -> None:
    """Without a validation split there are no figures of it, and no temperature."""
    set_dataset(preprocess={"validation_size": 0})
    download.main("tiny")
    preprocess.main("tiny")
    train.main("tiny", "tiny_conv")
    assert paths.curve("tiny", "tiny_conv", "validation").read_text() == (
        "seed,step,epoch,loss,accuracy\n"
    )
    summary = json.loads(paths.training("tiny", "tiny_conv").read_text())
    assert set(summary) == {"seeds", "precision", "parameters", "steps", "samples", "epochs"}
    assert summary["epochs"] == pytest.approx(99 * 16 / 120)
    assert storage.load(paths.model("tiny", "tiny_conv", 0)).description.temperature == 1
    curve = pd.read_csv(paths.curve("tiny", "tiny_conv", "train"))
    assert curve["accuracy"].iloc[-1] > 0.9


def train_with(seeds: list[int], **runtime: object) -> dict[str, bytes]:
    """Train with a variant's own seeds; return the bytes of all results by name."""

    def change(params: Any) -> None:
        params["variants"]["tiny_conv"]["seeds"] = seeds
        params["runtime"].update(runtime)

    edit_params(paths.PARAMS, change)
    train.main("tiny", "tiny_conv")
    return trained()


def trained() -> dict[str, bytes]:
    files = [
        *paths.training("tiny", "tiny_conv").parent.iterdir(),
        *paths.models("tiny", "tiny_conv").iterdir(),
    ]
    return {path.name: path.read_bytes() for path in files}


def test_the_same_seed_gives_the_same_bytes(prepared: Path) -> None:
    """The same seed gives identical model, curves and summary; another seed gives another model."""
    first, again, other = (train_with(seeds) for seeds in ([0], [0], [1]))
    assert first == again
    assert first["seed_0.safetensors"] != other["seed_1.safetensors"]


def test_checkpoints_change_no_result(prepared: Path) -> None:
    """How often checkpoints are written changes neither the model nor any other result."""
    rare = train_with([0], checkpoint_every={"seconds": 1000})
    assert rare == train_with([0], checkpoint_every={"steps": 1})


def test_each_seed_is_a_training_of_its_own(prepared: Path) -> None:
    """Several seeds give the models and curves that each gives alone, and their mean."""
    alone = [train_with([seed]) for seed in (0, 3)]
    together = train_with([0, 3])
    models = "seed_0.safetensors", "seed_3.safetensors"
    assert set(together) == {*models, *CURVES, "training.json"}
    for name in models:
        assert together[name] in [each.get(name) for each in alone]
    for name in CURVES:
        header, *rows = alone[0][name].splitlines()
        assert together[name].splitlines() == [header, *rows, *alone[1][name].splitlines()[1:]]
    summary = json.loads(together["training.json"])
    curve = pd.read_csv(paths.curve("tiny", "tiny_conv", "validation"))
    last = curve[curve["step"] == summary["steps"]]
    assert summary["seeds"] == last["seed"].tolist() == [0, 3]
    assert summary["validation_accuracy"] == pytest.approx(last["accuracy"].mean(), abs=1e-6)
    assert summary["validation_loss"] == pytest.approx(last["loss"].mean(), rel=1e-4)


def test_no_model_of_an_earlier_training_remains(prepared: Path) -> None:
    """A model of a seed that is no longer trained is removed."""
    train_with([0, 1])
    assert set(train_with([1])) == {*CURVES, "training.json", "seed_1.safetensors"}


def test_a_data_sets_budget_replaces_the_variants(prepared: Path) -> None:
    """A data set may set the budget of the variants that count samples."""
    set_dataset(train={"samples": 50, "epochs": None})
    train.main("tiny", "tiny_conv")
    assert json.loads(paths.training("tiny", "tiny_conv").read_text())["steps"] == 3


def test_the_summary_holds_no_measurement() -> None:
    """The summary holds only what code, parameters and data determine, averaged over seeds."""
    histories = {
        seed: History(
            train=[{"step": 11, "epoch": 0.5, "learning_rate": 0.1, "loss": 9.0, "accuracy": 0.1}],
            validation=[{"step": 11, "epoch": 0.5, "loss": loss, "accuracy": accuracy}],
        )
        for seed, loss, accuracy in ((0, 1.0, 0.5), (2, 2.0, 0.75))
    }
    size = {
        "seeds": [0, 2], "precision": "float32", "parameters": 5, "steps": 11, "samples": 704,
        "epochs": 0.5,
    }  # fmt: skip
    validated = {"validation_loss": 1.5, "validation_accuracy": 0.625}
    assert train.summarise(histories, 5, 64, "float32") == size | validated
    for history in histories.values():
        history.validation.clear()
    assert train.summarise(histories, 5, 64, "float32") == size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("variants.tiny_conv.batch_size", 91, "batch_size 91 is larger than the training set of 90"),
        ("variants.tiny_conv.learning_rate", -1, "learning_rate: input should be greater than 0"),
        ("variants.tiny_conv.augmentation", {"cutout": 12}, "augmentation.cutout of 12 pixels leaves "
         "nothing of images of 12×12; make it smaller"),
        ("variants.tiny_conv.budget", {"samples": 0}, "budget.samples: input should be greater"),
        ("variants.tiny_conv.layers", [{"type": "conv", "filters": 2, "kernel": 13,
            "padding": "valid"}], "a conv of 13×13 leaves less than one pixel of a 12×12 image"),
        ("train.precision", "float23", "did you mean 'float32'"),
        ("train.sede", 1, "unknown key 'sede'; did you mean 'seeds'"),
        ("train.seeds", [], "train.seeds: list should have at least 1 item"),
        ("variants.tiny_conv.seeds", [1, 1], "seeds: expected each once, received 1 2 times"),
        ("runtime.checkpoint_every", {"steps": 0}, "runtime.checkpoint_every.steps: input should"),
    ],
)  # fmt: skip
def test_bad_params_are_one_clear_line_and_write_nothing(
    prepared: Path, key: str, value: object, message: str
) -> None:
    """Parameters that cannot be trained with are rejected in one line, and nothing is written."""

    def change(params: Any) -> None:
        *path, last = key.split(".")
        for step in path:
            params = params[step]
        params[last] = value

    edit_params(prepared / "params.yaml", change)
    assert_one_clear_line(run_stage("train", "tiny", "tiny_conv", cwd=prepared), message)
    for folder in (paths.models("tiny", "tiny_conv"), paths.training("tiny", "tiny_conv").parent):
        assert not list(folder.rglob("*"))
    assert no_parts(prepared)


@pytest.mark.slow
def test_an_unwritable_folder_is_rejected_before_training(prepared: Path) -> None:
    """A folder that cannot be written is reported before the first step."""
    (prepared / "models").write_text("not a folder")
    result = run_stage("train", "tiny", "tiny_conv", cwd=prepared)
    assert_one_clear_line(result, "models/tiny/tiny_conv/seed_0.safetensors: cannot be written")
    assert "steps of" not in result.stdout


@pytest.mark.slow
def test_a_training_that_is_killed_resumes_to_the_same_bytes(prepared: Path) -> None:
    """Killed between two checkpoints of its second seed, a training resumes to the same bytes."""
    edit_params(
        paths.PARAMS, lambda params: params["variants"]["tiny_conv"]["budget"].update(samples=16000)
    )
    edit_params(
        paths.PARAMS, lambda params: params["runtime"].update(checkpoint_every={"steps": 10})
    )
    set_variant(seeds=[0, 1])
    # In a process of its own: only that lets each operation use one core.
    assert run_stage("train", "tiny", "tiny_conv").returncode == 0
    whole = trained()
    shutil.rmtree(paths.models("tiny", "tiny_conv"))
    process = subprocess.Popen(
        stage_command("train", "tiny", "tiny_conv"), env=environment(),
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    folder = paths.checkpoints("tiny", "tiny_conv")
    while not list(folder.rglob("seed_1/step_*.safetensors")):
        assert process.poll() is None
        time.sleep(0.001)
    process.kill()
    process.wait()
    # DVC would have removed what the stage left in place.
    shutil.rmtree(paths.models("tiny", "tiny_conv"), ignore_errors=True)
    done = run_stage("train", "tiny", "tiny_conv")
    assert "seed 0: resuming after step 999 of 999" in done.stdout, done.stderr
    assert re.search(r"seed 1: resuming after step \d+0 of 999", done.stdout)
    assert trained() == whole
    assert not list(folder.glob("*/"))


def test_machines_of_one_kind_share_checkpoints() -> None:
    """Another CPU with the same instructions goes on from a checkpoint; other ones begin anew."""
    vectors = ("avx2", "avx512_bf16", "fma")
    here = Device("CPU", "a CPU", True, instructions=vectors)
    there = Device("CPU", "another CPU", True, instructions=vectors)
    older = Device("CPU", "a CPU", False, instructions=vectors[:1])
    of = train.affects_rounding
    assert of(here, "float32", 1) == of(there, "float32", 1) != of(older, "float32", 1)
    assert of(here, "float32", 1) != of(here, "mixed_bfloat16", 1)
    assert of(Device("GPU", "H200", True), "float32", 1)["device"] == "GPU (H200)"


def test_small_networks_share_checkpoints_whatever_the_cores(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A network computed in parts, on a core for each operation, does not depend on their number."""
    cpu = Device("CPU", "a CPU", True, instructions=("fma",))
    here = train.affects_rounding(cpu, "float32", 2)
    assert here["threads"] == 1
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: range(96))
    assert train.affects_rounding(cpu, "float32", 2) == here


def test_the_number_of_cores_affects_rounding_on_every_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is noted as well where the CPU's instructions cannot be read, or the system is another."""
    for cpu in (Device("CPU", "a CPU", True, instructions=("fma",)), Device("CPU", "M4", False)):
        here = train.affects_rounding(cpu, "float32", 1)
        assert here["threads"] == len(os.sched_getaffinity(0))
        with monkeypatch.context() as patch:
            patch.setattr(os, "sched_getaffinity", lambda process: range(96))
            assert train.affects_rounding(cpu, "float32", 1) == here | {"threads": 96}
            patch.delattr(os, "sched_getaffinity")
            patch.setattr(sys, "platform", "darwin")
            assert train.affects_rounding(cpu, "float32", 1) == here | {"threads": os.cpu_count()}


def test_checkpoints_can_lie_in_a_shared_folder(
    prepared: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where a folder for checkpoints is set, an interrupted training leaves them there."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ALEXNET_MNIST_CHECKPOINTS", str(tmp_path / "shared"))
        fail_to_write()
        assert list((tmp_path / "shared/tiny/tiny_conv").rglob("*.safetensors"))
        train.main("tiny", "tiny_conv")
    assert "resuming after step 99 of 99" in capsys.readouterr().out
    assert not (prepared / "checkpoints").exists()


def fail_to_write() -> None:
    """Train, but fail when the summary is written."""
    with pytest.MonkeyPatch.context() as patch, pytest.raises(ZeroDivisionError):
        patch.setattr(train, "write_json", lambda *_: 1 / 0)
        train.main("tiny", "tiny_conv")


def test_a_checkpoint_of_other_params_is_not_used(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After a parameter has changed, training starts from the beginning."""
    fail_to_write()
    capsys.readouterr()
    set_variant(learning_rate=0.02)
    train.main("tiny", "tiny_conv")
    assert "resuming" not in capsys.readouterr().out


def test_a_training_that_could_not_write_resumes_at_its_end(
    prepared: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """If the results could not be written, the next run has nothing to train again."""
    fail_to_write()
    first = paths.model("tiny", "tiny_conv", 0).read_bytes()
    train.main("tiny", "tiny_conv")
    assert "resuming after step 99 of 99" in capsys.readouterr().out
    assert paths.model("tiny", "tiny_conv", 0).read_bytes() == first
