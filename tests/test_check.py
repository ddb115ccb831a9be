from pathlib import Path
from typing import Any

import pytest

from pipeline.check import TYPES, check
from pipeline.core.errors import ParamsError
from pipeline.core.params import SECTIONS, Params
from tests.helpers import ROOT, assert_one_clear_line, edit_params, run_python, run_stage

CONV = {"type": "conv", "filters": 2, "kernel": 13, "padding": "valid"}
DENSE = {"type": "dense", "units": 3}


def test_the_projects_own_params_are_valid() -> None:
    """The project's own params.yaml passes the check."""
    check(Params(ROOT / "params.yaml"))


def test_every_section_is_checked() -> None:
    """The check knows a type for every section."""
    assert set(TYPES) == set(SECTIONS)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("run.variants", "lenet5", "run.variants: input should be a valid list, received 'lenet5'"),
        ("run.variants", [], "run.variants: list should have at least 1 item"),
        ("run.variants", ["lenet5", "lenet5"], "run.variants: expected each once, received "
         "'lenet5' 2 times"),
        ("run.variants", ["lenet6"], "there is no 'lenet6' in variants; did you mean 'lenet5'"),
        ("run.datasets", ["tinny"], "there is no 'tinny' in datasets; did you mean 'tiny'"),
        ("run.ensembles", ["nobody"], "run.ensembles: there is no 'nobody' in ensembles"),
        ("selection.datasets", ["mnist_writer"], "selection.datasets: there is no 'mnist_writer'"),
        ("record.variants", ["deote"], "record.variants: there is no 'deote' in variants; did you"),
        ("record.datasets", ["tiny"], "record.datasets: 'tiny' is in run.datasets too, and its "
         "results lie in one place; give it a second row, under another name"),
        ("datasets.tiny.classes", 1, "datasets.tiny.classes: expected the number of classes, 2 to"),
        ("datasets.tiny.classes", 257, "or a list of as many names, received 257"),
        ("datasets.tiny.classes", ["a", "b", "a"], "classes: expected the name of each class once"),
        ("datasets.tiny.classes", [0, 1, 2], "expected a name for each class; put numbers into"),
        ("datasets.tiny.report", {"parts": {"a": [3, 2]}}, "datasets.tiny.report.parts.a: expected"),
        ("datasets.tiny.report", {"label_errors": [1, 1]}, "report.label_errors: expected each once"),
        ("datasets.tiny.preprocess.images", {"range": [1, 0]}, "a lower and a higher value, rec"),
        ("datasets.tiny.preprocess.images", {"layout": "HWC"}, "images.layout: input should be"),
        ("datasets.tiny.preprocess.labels", {"column": -1}, "labels.column: input should be great"),
        ("datasets.tiny.train", None, "datasets.tiny.train: input should be"),
        ("datasets.tiny.train.epochs", 0, "datasets.tiny.train.epochs: input should be greater"),
        ("datasets.tiny.preprocess.validation_size", -1, "validation_size: input should be gre"),
        ("datasets.tiny.preprocess", {"validation_size": 0, "writers": {"column": 2}},
         "datasets.tiny.preprocess: writers decide on the validation split, and validation_size is 0"),
        ("datasets.tiny.download.source", "mirror", "datasets.tiny.download"),
        ("datasets.tiny.download.files.test_images.sha256", "abc", "test_images.sha256: string"),
        ("datasets.tiny.download.files.test_images.name", "../x", "test_images.name: string should"),
        ("variants.lenet5.learning_rate", 0, "variants.lenet5.learning_rate: input should be gre"),
        ("variants.alexnet_2012.batch_size", "64", "variants.alexnet_2012.batch_size: input should"),
        ("variants.lenet5.seeds", [1, 1], "variants.lenet5.seeds: expected each once"),
        ("variants.lenet5.averaging", 1.0, "variants.lenet5.averaging: input should be less than 1"),
        ("variants.lenet5.augmentation", {"zoom": 1}, "augmentation.zoom: input should be less than"),
        ("variants.lenet5.augmentation", {"rotate": 200}, "augmentation.rotate: input should be l"),
        ("variants.lenet5.augmentation", {"flip": True}, "augmentation: unknown key 'flip'"),
        ("variants.lenet5.schedule", {"warmup": 0.0, "decay": "cosine", "per_epoch": 0.9},
         "variants.lenet5.schedule: per_epoch is for an exponential decay, which needs it"),
        ("variants.deotte.batch_size", 1, "variants.deotte: batch_norm needs the spread of a batch"),
        ("variants.deotte.schedule.decay", "constant", "schedule: per_epoch is for an exponential"),
        ("variants.lenet5.budget", {}, "variants.lenet5.budget: expected either samples or epochs"),
        ("variants.lenet5.initializer.type", "normal", "variants.lenet5.initializer: stddev is for"),
        ("variants.lenet5.layers", [DENSE, CONV], "variants.lenet5: layer conv2: conv needs an "
         "image, but a dense layer comes before it"),
        ("variants.lenet5.layers", [CONV] * 400, "variants.lenet5: layer conv342: a conv of 13×13 "
         "leaves less than one pixel"),
        ("preprocess.seed", -1, "preprocess.seed: input should be greater than or equal to 0"),
        ("train.precision", "float23", "train.precision: input should be 'float32', "),
        ("train.precision", "float23", "received 'float23'; did you mean 'float32'"),
        ("train.seeds", [], "train.seeds: list should have at least 1 item"),
        ("train.schedule", {"warmup": 0.1, "decay": "exponential"}, "train.schedule: per_epoch is"),
        ("train.schedule.warmup", 1.0, "train.schedule.warmup: input should be less than 1"),
        ("evaluate.chunk_size", 0, "evaluate.chunk_size"),
        ("profile.chunk_sizes", [8, 4], "profile.chunk_sizes: expected rising numbers"),
        ("report.mistakes_shown", -1, "report.mistakes_shown: input should be greater than or equa"),
        ("runtime.checkpoint_every", {"steps": 1, "seconds": 1}, "expected either steps or seconds"),
        ("runtime.checkpoint_evry", 1, "runtime: unknown key 'checkpoint_evry'; did you mean"),
    ],
)  # fmt: skip
def test_wrong_values_are_rejected_by_name(
    project: Path, key: str, value: object, message: str
) -> None:
    """A wrong value in any section is rejected by name, whether it would be run or not."""

    def change(params: Any) -> None:
        *path, last = key.split(".")
        for step in path:
            params = params[step]
        params[last] = value

    edit_params(project / "params.yaml", change)
    with pytest.raises(ParamsError) as error:
        check(Params())
    assert message in str(error.value)


def add_ensemble(
    project: Path, name: str, *members: tuple[str, list[int]], run: bool = True
) -> None:
    """Add an ensemble to params.yaml, and run it."""

    def change(params: Any) -> None:
        listed = [{"variant": variant, "seeds": seeds} for variant, seeds in members]
        params["ensembles"][name] = {"members": listed}
        params["variants"]["tiny_dense"]["seeds"] = [3, 4]
        params["run"]["ensembles"] = [name] if run else []

    edit_params(project / "params.yaml", change)


def test_an_ensemble_of_trained_models_is_valid(project: Path) -> None:
    """An ensemble may have any variant of its run with any seed that it is trained with."""
    add_ensemble(project, "both", ("tiny_conv", [0]), ("tiny_dense", [3, 4]))
    check(Params())


@pytest.mark.parametrize(
    ("name", "members", "message"),
    [
        ("both", [("tiny_conv", [0]), ("tiny_dens", [3])], "ensembles.both: there is no variant "
         "'tiny_dens' in the run; did you mean 'tiny_dense'"),
        ("both", [("tiny_conv", [0]), ("lenet5", [0])], "ensembles.both: there is no variant 'lenet5'"),
        ("both", [("tiny_conv", [0, 1])], "ensembles.both: tiny_conv is not trained with seed 1; its "
         "seeds are 0"),
        ("both", [("tiny_dense", [0, 3])], "ensembles.both: tiny_dense is not trained with seed 0; "
         "its seeds are 3, 4"),
        ("both", [("tiny_conv", [0])], "ensembles.both: expected at least two models"),
        ("both", [("tiny_dense", [3]), ("tiny_dense", [3])], "ensembles.both: expected each model once"),
        ("lenet5", [("tiny_conv", [0]), ("tiny_dense", [3])], "ensembles.lenet5: is the name of a "
         "variant, and their results would lie in one place; choose another one"),
        ("../up", [("tiny_conv", [0]), ("tiny_dense", [3])], "ensembles.../up: a name has"),
    ],
)  # fmt: skip
def test_a_wrong_ensemble_is_rejected_by_name(
    project: Path, name: str, members: list[tuple[str, list[int]]], message: str
) -> None:
    """An unknown or untrained member, or the name of a variant, is rejected by name."""
    add_ensemble(project, name, *members)
    with pytest.raises(ParamsError) as error:
        check(Params())
    assert message in str(error.value)


def test_an_ensemble_is_run_once(project: Path) -> None:
    """An ensemble listed twice in a run is rejected, as a variant is."""
    add_ensemble(project, "both", ("tiny_conv", [0]), ("tiny_dense", [3]))
    edit_params(project / "params.yaml", lambda params: params["run"]["ensembles"].append("both"))
    with pytest.raises(ParamsError, match="run.ensembles: expected each once"):
        check(Params())


@pytest.mark.parametrize("section", SECTIONS)
def test_a_missing_section_is_rejected(project: Path, section: str) -> None:
    """A section that is missing is rejected by name."""
    edit_params(project / "params.yaml", lambda params: params.pop(section))
    with pytest.raises(ParamsError, match=f"there is no .*'{section}'|in {section}"):
        check(Params())


def test_the_command_ends_with_one_line(project: Path) -> None:
    """`python -m pipeline.check` rejects an unknown variant in one line."""
    assert run_stage("check", cwd=project).returncode == 0
    edit_params(project / "params.yaml", lambda params: params["run"]["variants"].append("lenet6"))
    assert_one_clear_line(run_stage("check", cwd=project), "did you mean 'lenet5'")


def test_the_check_needs_no_tensorflow() -> None:
    """The check imports neither TensorFlow nor Keras, so it answers at once."""
    code = """
import sys
import pipeline.check
print(sorted({"keras", "tensorflow"} & set(sys.modules)))
"""
    assert run_python(code) == "[]\n"
