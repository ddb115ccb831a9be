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
        ("datasets.tiny.classes", 1, "datasets.tiny.classes: input should be greater than or equal"),
        ("datasets.tiny.train", None, "datasets.tiny.train: input should be"),
        ("datasets.tiny.train.epochs", 0, "datasets.tiny.train.epochs: input should be greater"),
        ("datasets.tiny.preprocess.validation_size", 0, "validation_size: input should be greater"),
        ("datasets.tiny.download.source", "mirror", "datasets.tiny.download"),
        ("datasets.tiny.download.files.test_images.sha256", "abc", "test_images.sha256: string"),
        ("datasets.tiny.download.files.test_images.name", "../x", "test_images.name: string should"),
        ("variants.lenet5.learning_rate", 0, "variants.lenet5.learning_rate: input should be gre"),
        ("variants.alexnet_2012.batch_size", "64", "variants.alexnet_2012.batch_size: input should"),
        ("variants.lenet5.seeds", [1, 1], "variants.lenet5.seeds: expected each once"),
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
