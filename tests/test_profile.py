import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline import profile
from pipeline.core import paths
from pipeline.core.progress import Progress
from pipeline.datasets.splits import SplitReader, save_split
from pipeline.network.chunks import MB
from tests.helpers import (
    assert_one_clear_line,
    edit_params,
    make_images,
    no_parts,
    run_python,
    run_stage,
)
from tests.network.helpers import describe, network

N = 60


@pytest.fixture
def prepared(project: Path) -> Path:
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    return project


def set_params(**sections: dict[str, object]) -> None:
    def change(params: Any) -> None:
        for name, settings in sections.items():
            params[name].update(settings)

    edit_params(paths.PARAMS, change)


def run_with(**sections: dict[str, object]) -> tuple[dict[str, Any], pd.DataFrame]:
    """Profile with some settings; return figures and table."""
    set_params(**sections)
    profile.main("tiny", "tiny_conv")
    figures = json.loads(paths.profile("tiny", "tiny_conv").read_text())
    return figures, pd.read_csv(paths.memory("tiny", "tiny_conv"))


def test_each_batch_up_to_the_whole_test_set_has_a_row(prepared: Path) -> None:
    """Each batch that the test set fills has a row, and so have the chunk and the whole set."""
    figures, table = run_with(profile={"chunk_sizes": [1, 16, 60, 500]}, evaluate={"chunk_size": 7})
    assert list(table.columns) == ["images", "peak_memory_mb"]
    assert table["images"].tolist() == [1, 7, 16, 60]
    assert (table["peak_memory_mb"].diff().dropna() >= 0).all()
    assert figures["chunk_size"] == 7
    assert figures["peak_memory_mb"] == table["peak_memory_mb"][table["images"] == 7].item()


def test_speeds_and_machine_are_told(prepared: Path) -> None:
    """The figures have the speeds of training and evaluation, and what they were measured on."""
    figures, _ = run_with(profile={"training_steps": 3})
    assert figures["training_images_per_second"] > 0
    assert figures["evaluation_images_per_second"] > 0
    assert figures["device"].startswith(("CPU", "GPU"))
    assert set(figures["versions"]) == {"python", "tensorflow", "keras"}
    assert figures["chunk_size"] == N


def test_nothing_needs_to_be_trained(prepared: Path) -> None:
    """The stage measures initial weights, so it neither needs nor makes a model."""
    run_with()
    assert not (prepared / "models").exists()


def test_a_batch_norm_is_measured_in_training_and_folded_in_evaluation(prepared: Path) -> None:
    """A variant with batch norms, for classes with names, is measured as it trains and evaluates."""

    def change(params: Any) -> None:
        params["datasets"]["tiny"]["classes"] = ["cat", "dog", "cow"]
        params["variants"]["tiny_conv"]["layers"] = [
            {"type": "conv", "filters": 4, "kernel": 3, "activation": "linear"},
            {"type": "batch_norm"},
            {"type": "dense", "units": 8},
            {"type": "batch_norm"},
        ]

    edit_params(paths.PARAMS, change)
    figures, _ = run_with(profile={"training_steps": 2})
    assert figures["training_images_per_second"] > 0
    assert figures["evaluation_images_per_second"] > 0


def test_a_batch_may_be_larger_than_the_test_set(prepared: Path) -> None:
    """Training is timed with the variant's own batches, however small the test set is."""
    description = describe(network({"type": "dense", "units": 4}), (12, 12, 1), classes=3)
    with SplitReader(paths.prepared("tiny", "test")) as reader:
        images, labels = profile._batch(reader, 130)
        assert (len(images), len(labels)) == (130, 130)
        assert profile.training_speed(description, 130, 2, "float32", reader) > 0


def test_batches_that_would_not_fit_are_skipped(capsys: pytest.CaptureFixture[str]) -> None:
    """A batch predicted to take more than half of the free memory is skipped with a message."""
    held: list[bytearray] = []
    passes = [(images, lambda: held.append(bytearray(60_000_000))) for images in (10, 100, 200)]
    with Progress("p", 310, "images", rate_unit="images") as progress:
        rows = profile.measure_memory(passes, 1, 500, progress)
    assert [row.images for row in rows] == [10]
    assert "100 images: skipped, they need" in capsys.readouterr().out


@pytest.mark.parametrize("free", [0, 10 * MB])
def test_evaluation_is_measured_however_little_memory_is_free(
    prepared: Path, monkeypatch: pytest.MonkeyPatch, free: float
) -> None:
    """Even if larger batches have to be skipped, the chunks of evaluation are measured."""
    monkeypatch.setattr(profile, "free_bytes", lambda: free)
    figures, table = run_with(profile={"chunk_sizes": [1, 2, 32]}, evaluate={"chunk_size": 7})
    assert 7 in table["images"].tolist()
    assert figures["evaluation_images_per_second"] > 0


# What TensorFlow frees it keeps for itself, so only a new process shows the memory that it takes.
MEASURE = """
import json, sys
from pathlib import Path
import numpy as np
from pipeline import profile
from pipeline.datasets.splits import Split, SplitReader, save_split
from tests.network.helpers import loaded

folder = Path(sys.argv[1])
save_split(folder, Split(np.zeros((600, 28, 28, 1), np.uint8), np.zeros(600, np.uint8)))
with SplitReader(folder) as reader:
    rows, speed = profile.profile(loaded("alexnet_norm"), reader, 20, [20])
print(json.dumps(rows))
"""


@pytest.mark.slow
def test_memory_grows_with_the_batch(tmp_path: Path) -> None:
    """A convolution of 64 filters takes at least the memory of its output: 0.2 MB an image."""
    rows = json.loads(run_python(MEASURE, str(tmp_path)).splitlines()[-1])
    (few, least), (many, most) = rows
    assert (few, many) == (20, 600)
    assert most - least > 580 * 28 * 28 * 64 * 4 / 1e6


@pytest.mark.slow
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"chunk_sizes": [8, 4]}, "profile.chunk_sizes: expected rising numbers, received [8, 4]"),
        ({"chunk_sizes": []}, "profile.chunk_sizes: list should have at least 1 item"),
        ({"chunk_sizes": [0]}, "profile.chunk_sizes[0]: input should be greater than 0"),
        ({"training_steps": 0}, "profile.training_steps: input should be greater than 0"),
    ],
)
def test_bad_settings_are_one_clear_line(
    prepared: Path, settings: dict[str, object], message: str
) -> None:
    """Settings that make no sense are rejected in one line, and nothing is written."""
    set_params(profile=settings)
    assert_one_clear_line(run_stage("profile", "tiny", "tiny_conv", cwd=prepared), message)
    assert not paths.profile("tiny", "tiny_conv").exists()
    assert not paths.memory("tiny", "tiny_conv").exists()
    assert no_parts(prepared)
