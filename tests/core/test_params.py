from pathlib import Path
from typing import Literal

import pytest

from pipeline.core.errors import ParamsError
from pipeline.core.params import Params, Run, Section, nearest
from tests.helpers import ROOT


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
    """The project's own params.yaml is valid and runs something."""
    assert Params(ROOT / "params.yaml").get("run", Run).variants


def test_numbers_are_read_as_dvc_reads_them(params_file: Path) -> None:
    """As in DVC, 1e-3 is a number and not a string."""
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
def test_errors_are_named_with_a_remedy(params_file: Path, text: str, message: str) -> None:
    """An unknown key or a wrong value is rejected by name, with the nearest correct one."""
    with pytest.raises(ParamsError, match=message):
        read(params_file, text).get("train", Stage)


KNOWN = "datasets: {abc: {}}\nvariants: {abc: {}}\n"


@pytest.mark.parametrize(
    ("run", "message"),
    [
        ("{datasets: [abc], variants: [ab]}", "no 'ab' in variants; did you mean 'abc'"),
        ("{datasets: [abc], variant: [abc]}", "unknown key 'variant'; did you mean 'variants'"),
        ("{datasets: [abc]}", "run.variants: is missing"),
        ("{datasets: [], variants: [abc]}", "run.datasets: list should have at least 1 item"),
        ("{datasets: [abc], variants: [abc, abc]}", "run.variants: expected each once, "
         "received 'abc' 2 times"),
        ("{datasets: abc, variants: [abc]}", "run.datasets: input should be a valid list"),
        ("{datasets: [{a: 1}], variants: [abc]}", r"run.datasets\[0\]: input should be a valid str"),
        ("&run {datasets: *run, variants: [abc]}", "run.datasets: input should be a valid list"),
        ("3", "run: input should be"),
    ],
)  # fmt: skip
def test_only_known_data_sets_and_variants_are_run(
    params_file: Path, run: str, message: str
) -> None:
    """`run` must list existing data sets and variants, at least one of each, and none twice."""
    with pytest.raises(ParamsError, match=message):
        read(params_file, f"run: {run}\n{KNOWN}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("record: {datasets: [abd], variants: [abc]}", "record.datasets: there is no 'abd' in data"),
        ("selection: {datasets: [abc], variants: [ab]}", "selection.variants: there is no 'ab'"),
        ("run: {datasets: [abc], variants: [abc], ensembles: [ab]}", "run.ensembles: there is no"),
        ("run: {datasets: [abc], variants: [abc], ensembles: abc}", "ensembles: input should be a v"),
        ("run: &run {datasets: [abc], variants: [abc]}\nrecord: *run", "record.datasets: 'abc' is in "
         "run.datasets too, and its results lie in one place; give it a second row"),
        ("ensembles: {'a b': {}}", "ensembles.a b: a name has lower-case letters"),
    ],
)  # fmt: skip
def test_each_list_has_known_names_and_data_sets_of_its_own(
    params_file: Path, text: str, message: str
) -> None:
    """Each list has existing rows, and a data set is in one list alone."""
    with pytest.raises(ParamsError, match=message):
        read(params_file, f"{text}\n{KNOWN}")


def test_a_data_set_belongs_to_the_list_that_has_it(params_file: Path) -> None:
    """A data set is run by the list that has it, and by `run` if none does."""
    params = read(
        params_file,
        "datasets: {a: {}, b: {}, c: {}}\nvariants: {net: {}}\n"
        "run: {datasets: [a], variants: [net]}\nrecord: {datasets: [b], variants: [net]}",
    )
    assert [params.list_of(name) for name in "abc"] == ["run", "record", "run"]


def test_an_unknown_row_suggests_the_nearest() -> None:
    """An unknown variant is rejected with the nearest known one as a suggestion."""
    with pytest.raises(ParamsError, match="no 'lenet6'; did you mean 'lenet5'"):
        Params(ROOT / "params.yaml").get("variants.lenet6", dict)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """If params.yaml is missing, the error names it and the remedy."""
    with pytest.raises(ParamsError, match=r"params\.yaml: cannot be read .*run from the root"):
        Params(tmp_path / "params.yaml")


def test_without_a_near_match_all_known_names_are_listed() -> None:
    """If no known name is similar, all of them are listed."""
    assert nearest("zzz", ["b", "a"]) == "known are: a, b"


def test_changes_since_reading_are_detected(params_file: Path) -> None:
    """Keys that were read are reported once their values change or vanish, and no others are."""
    params = read(params_file, "train: {size: 3}\nevaluate: {mode: fast}\nreport: {size: 1}")
    params.get("train", Stage)
    params.get("evaluate.mode", str)
    assert params.changed_since_read() == []
    params_file.write_text("report: {size: 2}\nevaluate: {mode: fast}\ntrain: {size: 3}  # same")
    assert params.changed_since_read() == []
    params_file.write_text("train: {size: 4}\nevaluate: {}")
    assert params.changed_since_read() == ["train", "evaluate.mode"]


def test_runtime_settings_are_not_tracked(params_file: Path) -> None:
    """A change in `runtime` affects no result, so it does not count as a changed input."""
    params = read(params_file, "runtime: {size: 3}")
    params.get("runtime", Stage)
    params_file.write_text("runtime: {size: 4}")
    assert params.changed_since_read() == []
