import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as oracle

from pipeline import evaluate
from pipeline.core import paths
from pipeline.core.errors import ModelError
from pipeline.core.params import Params
from pipeline.datasets.splits import Split, save_split
from pipeline.network import storage
from pipeline.network.build import build
from pipeline.network.device import find_device
from pipeline.training.recipe import Variant
from tests.helpers import assert_one_clear_line, edit_params, make_images, no_parts, run_stage
from tests.network.helpers import describe

N = 60
WRITTEN = (paths.metrics, paths.mistakes, paths.calibration, paths.predictions)


@pytest.fixture
def trained(project: Path) -> Path:
    """A project with a test set and a model, as if they had been prepared and trained."""
    row: Variant = Params().get("variants.tiny_conv", Variant)
    description = describe(row.network(), (12, 12, 1), classes=3)
    storage.save(paths.model("tiny", "tiny_conv", 0), build(description, seed=1), description)
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    return project


def set_evaluation(**settings: object) -> None:
    edit_params(paths.PARAMS, lambda params: params["evaluate"].update(settings))


def run_with(**settings: object) -> tuple[dict[str, Any], pd.DataFrame]:
    """Evaluate with some settings; return metrics and predictions."""
    set_evaluation(**settings)
    evaluate.main("tiny", "tiny_conv")
    metrics = json.loads(paths.metrics("tiny", "tiny_conv").read_text())
    return metrics, pd.read_csv(paths.predictions("tiny", "tiny_conv"))


def test_metrics_and_predictions_agree_with_scikit_learn(trained: Path) -> None:
    """Metrics equal scikit-learn's on the predictions, which have one row for each image."""
    metrics, predictions = run_with()
    assert list(predictions.columns) == ["seed", "index", "label", "prediction", "confidence"]
    assert predictions["index"].tolist() == list(range(N))
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    mistakes = pd.read_csv(paths.mistakes("tiny", "tiny_conv"))
    pd.testing.assert_frame_equal(mistakes, wrong.reset_index(drop=True))
    assert predictions["label"].tolist() == make_images(N, seed=2).labels.tolist()
    assert metrics["n"] == N
    assert metrics["accuracy"] == oracle.accuracy_score(
        predictions["label"], predictions["prediction"]
    )
    assert metrics["errors"] == len(wrong) > 0
    assert metrics["precision"] == find_device().precision("auto")
    assert metrics["warning"] == "no better than chance with seed 0"  # it was never trained
    assert metrics["balanced_accuracy"] == pytest.approx(
        oracle.balanced_accuracy_score(predictions["label"], predictions["prediction"]), abs=1e-8
    )
    assert metrics["temperature"] == 1
    assert set(metrics) == {
        "warning", "precision", "n", "errors", "accuracy", "balanced_accuracy", "nll", "ece",
        "temperature", "calibrated_nll", "calibrated_ece",
    }  # fmt: skip


def test_a_models_temperature_calibrates_and_changes_no_class(trained: Path) -> None:
    """The temperature in a model's header scales confidences and calibrated figures alone."""
    plain, before = run_with(precision="float32")
    path = paths.model("tiny", "tiny_conv", 0)
    network, description = storage.load(path)
    logits = network(make_images(N, seed=2).images).numpy().astype(float)
    storage.save(path, network, description.model_copy(update={"temperature": 0.25}))
    scaled, after = run_with(precision="float32")
    assert after["prediction"].tolist() == before["prediction"].tolist()
    for figure in ("errors", "accuracy", "balanced_accuracy", "nll", "ece"):
        assert scaled[figure] == plain[figure]
    expected = softmax(logits / 0.25, axis=1)
    assert after["confidence"].tolist() == pytest.approx(expected.max(axis=1), abs=1e-5)
    assert scaled["temperature"] == 0.25
    assert scaled["calibrated_nll"] == pytest.approx(
        oracle.log_loss(after["label"], expected, labels=range(3)), abs=1e-5
    )
    assert plain["calibrated_nll"] == plain["nll"]
    curves = pd.read_csv(paths.calibration("tiny", "tiny_conv")).groupby("calibrated")
    means = [np.average(each["confidence"], weights=each["images"]) for _, each in curves]
    assert means == pytest.approx(
        [before["confidence"].mean(), after["confidence"].mean()], abs=1e-5
    )


def test_results_are_the_same_each_time(trained: Path) -> None:
    """Evaluating twice gives the same bytes: the results hold no measurement."""
    run_with()
    first = [path("tiny", "tiny_conv").read_bytes() for path in WRITTEN]
    run_with()
    assert [path("tiny", "tiny_conv").read_bytes() for path in WRITTEN] == first


def test_each_seeds_model_is_evaluated(trained: Path) -> None:
    """Models of several seeds each have their rows and curves, and the metrics are their mean."""
    network, description = storage.load(paths.model("tiny", "tiny_conv", 0))
    alone, rows = run_with()
    curve = pd.read_csv(paths.calibration("tiny", "tiny_conv"))
    for weight in network.trainable_variables:
        weight.assign(weight * 0.5)
    storage.save(paths.model("tiny", "tiny_conv", 7), network, description)
    metrics, predictions = run_with()
    assert predictions["seed"].tolist() == [0] * N + [7] * N
    pd.testing.assert_frame_equal(predictions[:N], rows)
    errors = (predictions["label"] != predictions["prediction"]).groupby(predictions["seed"]).sum()
    assert [metrics["by_seed"][seed]["errors"] for seed in ("0", "7")] == errors.tolist()
    assert metrics["by_seed"]["0"] == {key: alone[key] for key in metrics["by_seed"]["0"]}
    assert metrics["errors"] == errors.mean()
    both = pd.read_csv(paths.calibration("tiny", "tiny_conv"))
    pd.testing.assert_frame_equal(both[both["seed"] == 0], curve)
    assert both.groupby(["seed", "calibrated"])["images"].sum().tolist() == [N] * 4
    assert list(both.columns) == ["seed", "calibrated", "confidence", "accuracy", "images"]


def test_without_a_model_the_error_tells_the_remedy(project: Path) -> None:
    """If there is no model, the error says to train the variant."""
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    with pytest.raises(ModelError, match="models/tiny/tiny_conv: expected models, .*; train the"):
        evaluate.main("tiny", "tiny_conv")


def test_any_chunk_size_gives_the_same_predictions(trained: Path) -> None:
    """Chunks of any size, also larger than the test set, give the same predictions and metrics."""
    expected, rows = run_with(chunk_size="auto")
    for chunk_size in (1, 7, 30, 59, 60, 1000):
        metrics, predictions = run_with(chunk_size=chunk_size)
        for key in ("n", "errors", "accuracy", "balanced_accuracy", "nll", "ece"):
            assert metrics[key] == pytest.approx(expected[key], abs=2e-6)
        pd.testing.assert_frame_equal(predictions, rows, atol=2e-6, rtol=0)


def test_images_of_another_size_are_rejected(trained: Path) -> None:
    """A model for images of another size is rejected in one line, and nothing is written."""
    other = Split(np.zeros((4, 14, 14, 1), np.uint8), np.zeros(4, np.uint8))
    save_split(paths.prepared("tiny", "test"), other)
    assert_one_clear_line(
        run_stage("evaluate", "tiny", "tiny_conv", cwd=trained),
        "expects images of (12, 12, 1), the test images are (14, 14, 1); train it again",
    )
    assert not any(path("tiny", "tiny_conv").exists() for path in WRITTEN)
    assert no_parts(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "models/tiny/tiny_conv/seed_0.safetensors").write_bytes(b"bad"),
         "cannot be read as a model"),
        (lambda root: (root / "predictions").write_text(""), "predictions/tiny/tiny_conv.csv: cannot"),
        (lambda root: set_evaluation(chunk_size=0), "evaluate.chunk_size"),
        (lambda root: set_evaluation(memory_budget_mb=-1),
         "evaluate.memory_budget_mb: input should be greater than 0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(
    trained: Path, damage: Callable[[Path], object], message: str
) -> None:
    """A corrupt model, an unwritable folder or a wrong setting ends the stage with one line."""
    damage(trained)
    assert_one_clear_line(run_stage("evaluate", "tiny", "tiny_conv", cwd=trained), message)
    assert not paths.metrics("tiny", "tiny_conv").exists()
    assert no_parts(trained)


def test_progress_counts_images(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log ends with all images counted."""
    evaluate.main("tiny", "tiny_conv")
    assert "evaluate tiny/tiny_conv: 60/60 images (100%)" in capsys.readouterr().err
