import json
from pathlib import Path

import pandas as pd
import pytest

from pipeline import footprint, paths
from pipeline.data import save_split
from tests.conftest import (
    assert_one_clear_line,
    edit_params,
    make_images,
    no_parts,
    run_python,
    run_stage,
)


@pytest.fixture
def prepared(project: Path) -> Path:
    save_split(paths.prepared("tiny", "test"), make_images(60, seed=2))
    return project


def set_sizes(sizes: object) -> None:
    edit_params(paths.PARAMS, lambda params: params["footprint"].update({"chunk_sizes": sizes}))


def test_the_whole_test_set_is_the_last_row(prepared: Path) -> None:
    """Each chunk that the test set fills has a row, and the whole set comes last."""
    set_sizes([1, 16, 60, 500])
    footprint.main("tiny", "tiny_conv")
    table = pd.read_csv(paths.footprint("tiny", "tiny_conv"))
    assert list(table.columns) == ["chunk_size", "peak_memory_mb"]
    assert table["chunk_size"].tolist() == [1, 16, 60]
    assert (table["peak_memory_mb"].diff().dropna() >= 0).all()


# What TensorFlow has freed it keeps for itself, so only a new process shows all that a model takes.
MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from pipeline import footprint, model
from pipeline.data import Split, SplitReader, save_split
from tests.test_model import described

folder, free = Path(sys.argv[1]), float(sys.argv[2])
save_split(folder, Split(np.zeros((600, 28, 28, 1), np.uint8), np.zeros(600, np.uint8)))
with SplitReader(folder) as reader:
    rows = footprint.measure(model.build(described("alexnet_norm")), reader, [20], free)
print(json.dumps(rows))
"""


def measure_apart(folder: Path, free: float) -> tuple[list[footprint.Row], str]:
    """Measure alexnet_norm on 20 and 600 images; return the rows, and all that was printed."""
    output = run_python(MEASURE, str(folder), str(free))
    return [footprint.Row(*row) for row in json.loads(output.splitlines()[-1])], output


@pytest.mark.slow
def test_memory_grows_with_what_is_given_at_once(tmp_path: Path) -> None:
    """A convolution of 64 filters takes at least its output: 0.2 MB an image."""
    rows, _ = measure_apart(tmp_path, free=1e6)
    assert [row.chunk_size for row in rows] == [20, 600]
    assert rows[1].peak_memory_mb - rows[0].peak_memory_mb > 580 * 28 * 28 * 64 * 4 / 1e6


@pytest.mark.slow
def test_what_would_not_fit_is_not_tried(tmp_path: Path) -> None:
    """A chunk that would take more than half of the free memory is not tried, and that is said."""
    rows, output = measure_apart(tmp_path, free=100)
    assert [row.chunk_size for row in rows] == [20]
    assert "600 images at once: not tried" in output


def test_free_memory_heeds_the_limit_of_the_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A control group's limit counts where it is lower than what the machine has."""
    machine = footprint.free_mb()
    monkeypatch.setattr(footprint, "CGROUP", tmp_path)
    (tmp_path / "memory.max").write_text("50000000\n")
    (tmp_path / "memory.current").write_text("20000000\n")
    assert footprint.free_mb() == 30 < machine
    (tmp_path / "memory.max").write_text("max\n")
    assert footprint.free_mb() > 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("sizes", "message"),
    [
        ([8, 4], "footprint.chunk_sizes: expected rising numbers, received [8, 4]"),
        ([], "footprint.chunk_sizes: list should have at least 1 item"),
        ([0], "footprint.chunk_sizes[0]: input should be greater than or equal to 1"),
    ],
)
def test_sizes_that_make_no_sense_are_refused(prepared: Path, sizes: object, message: str) -> None:
    """Sizes that do not rise, or none, are refused in one line, and nothing is written."""
    set_sizes(sizes)
    assert_one_clear_line(run_stage("footprint", "tiny", "tiny_conv", cwd=prepared), message)
    assert not paths.footprint("tiny", "tiny_conv").exists()
    assert no_parts(prepared)
