from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.scores.load import load_ensemble, load_json, load_result
from tests.scores.helpers import LABELS, make_ensemble, make_result, write_result

TABLES = ("training_curve", "validation_curve", "calibration", "memory")


def test_results_are_loaded_as_the_stages_wrote_them(project: Path) -> None:
    """All tables and figures are loaded as they were written."""
    written = make_result("tiny_conv", 3)
    write_result(written)
    loaded = load_result("tiny", "tiny_conv", LABELS)
    for name in ("variant", "training", "metrics", "profile", "seeds"):
        assert getattr(loaded, name) == getattr(written, name), name
    for name in TABLES:
        assert getattr(loaded, name).equals(getattr(written, name)), name
    assert loaded.predictions.mistakes.equals(written.predictions.mistakes)
    assert loaded.predictions.images == written.predictions.images
    assert loaded.predictions.right.to_dict() == written.predictions.right.to_dict()


def test_an_ensemble_has_no_training(project: Path) -> None:
    """An ensemble is loaded from what its stage writes; it has no curves, profile or seeds."""
    written = make_ensemble("both", 3)
    write_result(written)
    loaded = load_ensemble("tiny", "both", LABELS)
    assert (loaded.variant, loaded.metrics, loaded.seeds) == ("both", written.metrics, 1)
    assert loaded.calibration.equals(written.calibration)
    assert loaded.predictions.mistakes.equals(written.predictions.mistakes)
    assert (loaded.training, loaded.profile) == ({}, {})
    for name in ("training_curve", "validation_curve", "memory"):
        assert getattr(loaded, name).empty


def test_a_training_without_validation_has_an_empty_curve(project: Path) -> None:
    """A validation curve of a header alone is read as one without rows."""
    result = make_result("tiny_conv", 3)
    write_result(replace(result, validation_curve=result.validation_curve[:0]))
    assert load_result("tiny", "tiny_conv", LABELS).validation_curve.empty


@pytest.mark.parametrize(
    "content",
    [
        "",
        "index,label\n1,2\n",
        "a\n\x00",
        "index,label,prediction",
        "seed,index,label,prediction,confidence\n0,9e99,1,1,0.9\n",
        f"seed,index,label,prediction,confidence\n0,{10**20},1,1,0.9\n",
        "seed,index,label,prediction,confidence\n1,0,1,2,0.9\n",
        "seed,index,label,prediction,confidence\n0,0,7,2,0.9\n",
    ],
)
def test_damaged_mistakes_are_rejected(project: Path, content: str) -> None:
    """Mistakes that are not a valid table for this test set are rejected by name."""
    write_result(make_result("tiny_conv", 3))
    paths.mistakes("tiny", "tiny_conv").write_text(content)
    with pytest.raises(
        DataError, match=r"tiny_conv/mistakes\.csv: cannot be read .* run the stage"
    ):
        load_result("tiny", "tiny_conv", LABELS)


@pytest.mark.parametrize("number", ["9e99", 10**20, "many"])
def test_a_table_with_an_impossible_number_is_rejected(project: Path, number: object) -> None:
    """A count that is not a whole number is rejected by name, without a warning."""
    write_result(make_result("tiny_conv", 3))
    paths.memory("tiny", "tiny_conv").write_text(f"images,peak_memory_mb\n{number},1\n")
    with pytest.raises(DataError, match=r"tiny_conv/memory\.csv: cannot be read"):
        load_result("tiny", "tiny_conv", LABELS)


@pytest.mark.parametrize("content", ["{", "[]", "3", "[" * 100_000])
def test_damaged_figures_are_rejected(tmp_path: Path, content: str) -> None:
    """A file that is not JSON with keys and values is rejected by name."""
    (tmp_path / "figures.json").write_text(content)
    with pytest.raises(DataError, match=r"figures\.json: cannot be read"):
        load_json(tmp_path / "figures.json")


def test_a_missing_file_is_named(project: Path) -> None:
    """If a result is missing, the error names its file and the remedy."""
    write_result(make_result("tiny_conv", 3))
    paths.profile("tiny", "tiny_conv").unlink()
    with pytest.raises(DataError, match=r"profile\.json: cannot be read .*run the stage that wri"):
        load_result("tiny", "tiny_conv", LABELS)


@pytest.mark.parametrize("name", ["metrics.json", "mistakes.csv", "curve_train.csv"])
def test_a_merge_conflict_is_named(project: Path, name: str) -> None:
    """A result with a merge conflict is named with its line and the remedy."""
    write_result(make_result("tiny_conv", 3))
    path = paths.metrics("tiny", "tiny_conv").with_name(name)
    path.write_text(f"\n<<<<<<< HEAD\n{path.read_text()}=======\n>>>>>>> other\n")
    with pytest.raises(DataError, match=f"{name}: holds a merge conflict, in line 2; merge params"):
        load_result("tiny", "tiny_conv", LABELS)
