from pathlib import Path

import pytest

from pipeline import paths
from pipeline.errors import DataError
from pipeline.results import read_json, read_result
from tests.test_report import LABELS, make_result, write_result


def test_what_the_stages_wrote_is_read(project: Path) -> None:
    """Every table comes back with its columns, and the figures as they were."""
    written = make_result("tiny_conv", 3)
    write_result(written)
    read = read_result("tiny", "tiny_conv", LABELS)
    assert read.metrics == written.metrics
    assert read.training == written.training
    for name in ("training_curve", "validation_curve", "reliability", "footprint"):
        assert getattr(read, name).equals(getattr(written, name)), name
    assert read.predictions.mistakes.equals(written.predictions.mistakes)
    assert read.predictions.images == written.predictions.images
    assert read.predictions.right.to_dict() == written.predictions.right.to_dict()


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
def test_damaged_mistakes_are_refused(project: Path, content: str) -> None:
    """Mistakes that are not a valid table of this test set are refused by name."""
    write_result(make_result("tiny_conv", 3))
    paths.mistakes("tiny", "tiny_conv").write_text(content)
    with pytest.raises(DataError, match=r"tiny_conv\.csv: cannot be read .* run the stage"):
        read_result("tiny", "tiny_conv", LABELS)


@pytest.mark.parametrize("number", ["9e99", 10**20])
def test_a_table_with_a_number_out_of_range_is_refused(project: Path, number: object) -> None:
    """A whole number that is none ends in the error by name, with no warning beside it."""
    write_result(make_result("tiny_conv", 3))
    paths.footprint("tiny", "tiny_conv").write_text(f"chunk_size,peak_memory_mb\n{number},1\n")
    with pytest.raises(DataError, match=r"tiny_conv\.csv: cannot be read"):
        read_result("tiny", "tiny_conv", LABELS)


def test_damaged_figures_are_refused(tmp_path: Path) -> None:
    """A file that is no JSON is refused by name."""
    (tmp_path / "figures.json").write_text("{")
    with pytest.raises(DataError, match=r"figures\.json: cannot be read"):
        read_json(tmp_path / "figures.json")
