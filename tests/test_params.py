from pathlib import Path
from typing import Literal

import pytest

from pipeline.errors import ParamsError
from pipeline.params import Params, Section, nearest
from tests.conftest import ROOT


class Stage(Section):
    size: int
    mode: Literal["fast", "slow"] = "fast"


@pytest.fixture
def params_file(tmp_path: Path) -> Path:
    return tmp_path / "params.yaml"


def read(path: Path, text: str) -> Params:
    path.write_text(text)
    return Params(path)


def test_the_projects_own_params_are_valid() -> None:
    """The project's own params.yaml is read without complaint."""
    assert Params(ROOT / "params.yaml").get("run.variants", list[str])


def test_numbers_are_read_as_dvc_reads_them(params_file: Path) -> None:
    """1e-3 is a number, as for DVC."""
    assert read(params_file, "train: {rate: 1e-3}").get("train.rate", float) == 0.001


def test_a_section_is_typed_and_immutable(params_file: Path) -> None:
    """A section has typed fields that cannot be changed."""
    stage: Stage = read(params_file, "train: {size: 3}").get("train", Stage)
    assert stage.size == 3
    with pytest.raises(ValueError, match="frozen"):
        stage.size = 4  # type: ignore[misc]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {}", r"unknown key 'trian'; did you mean 'train'"),
        ("run: {variants: [ab]}\nvariants: {abc: {}}", "no 'ab' in variants; did you mean 'abc'"),
        ("run: {variant: []}", r"'run.variant'; did you mean 'variants'"),
        ("datasets: {a: {clases: 3}}", r"'datasets.a.clases'; did you mean 'classes'"),
        ("datasets: {../a: {}}", r"datasets\.\.\./a: a name has"),
        ("variants: {'a b': {}}", "variants.a b: a name has"),
        ("train: {siz: 3}", r"train: unknown key 'siz'; did you mean 'size'"),
        ("train: {}", r"train\.size: is missing"),
        ("train: {size: big}", r"train\.size: input should be a valid integer, received 'big'"),
        ("train: {size: true}", r"received True"),
        ("train: {size: 3, mode: slo}", r"received 'slo'; did you mean 'slow'"),
        ("train: 3", "dictionary"),
        ("{}", "there is no 'train'"),
        ("- a", "expected keys with values"),
        ("run: {datasets: [{a: 1}]}", "run.datasets: expected names, received"),
        ("run: &run {datasets: *run}", "run.datasets: expected names, received"),
        ("a: 2020-99-99", "is not valid YAML: month must be"),
        ("a: !!int abc", "is not valid YAML"),
        ("a: !!int ''", "is not valid YAML"),
        ("a: !!bool maybe", "is not valid YAML"),
        ("? [{a: 1}]\n: 2", "is not valid YAML"),
        ("[" * 10_000, "is not valid YAML: it is nested too deeply"),
        ("a: &x 1\nb: &x 2", "is not valid YAML: found duplicate anchor"),
        ("a: [", "is not valid YAML"),
        ("train: {size: 1, size: 2}", "duplicate key"),
    ],
)
def test_what_is_wrong_is_refused_with_a_remedy(params_file: Path, text: str, message: str) -> None:
    """An unknown key or wrong value is named, with the nearest right one."""
    with pytest.raises(ParamsError, match=message):
        read(params_file, text).get("train", Stage)


def test_an_unknown_row_offers_the_nearest() -> None:
    """An unknown variant is answered with the nearest known one."""
    with pytest.raises(ParamsError, match="no 'lenet6'; did you mean 'lenet5'"):
        Params(ROOT / "params.yaml").get("variants.lenet6", dict)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A missing params.yaml is named, with the remedy."""
    with pytest.raises(ParamsError, match=r"params\.yaml: cannot be read"):
        Params(tmp_path / "params.yaml")


def test_nothing_near_lists_what_is_known() -> None:
    """Where no name is near, all known ones are listed."""
    assert nearest("zzz", ["b", "a"]) == "known are: a, b"


def test_what_changed_since_it_was_read_is_told(params_file: Path) -> None:
    """Of the keys that were read, those are named whose values are others now, or gone."""
    params = read(params_file, "train: {size: 3}\nevaluate: {mode: fast}\nreport: {size: 1}")
    params.get("train", Stage)
    params.get("evaluate.mode", str)
    assert params.changed_since_read() == []
    params_file.write_text("report: {size: 2}\nevaluate: {mode: fast}\ntrain: {size: 3}  # same")
    assert params.changed_since_read() == []
    params_file.write_text("train: {size: 4}\nevaluate: {}")
    assert params.changed_since_read() == ["train", "evaluate.mode"]
