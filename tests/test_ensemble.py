import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax
from sklearn import metrics as oracle

from pipeline import ensemble
from pipeline.core import paths
from pipeline.core.params import Params
from pipeline.datasets.splits import Split, save_split
from pipeline.network import storage
from pipeline.network.build import build
from pipeline.training.recipe import Variant
from tests.helpers import assert_one_clear_line, edit_params, make_images, no_parts, run_stage
from tests.network.helpers import describe

N = 60
MEMBERS = (("tiny_conv", 0), ("tiny_conv", 3), ("tiny_dense", 0))
TEMPERATURES = (0.5, 1.0, 2.0)
WRITTEN = (paths.metrics, paths.mistakes, paths.calibration, paths.predictions)


def save_member(variant: str, seed: int, temperature: float) -> None:
    row: Variant = Params().get(f"variants.{variant}", Variant)
    description = describe(row.network(), (12, 12, 1), classes=3)
    described = description.model_copy(update={"temperature": temperature})
    storage.save(paths.model("tiny", variant, seed), build(described, seed=seed), described)


@pytest.fixture
def trained(project: Path) -> Path:
    """A project with a test set and models, as if they had been prepared and trained."""

    def change(params: Any) -> None:
        listed = [{"variant": name, "seeds": [seed]} for name, seed in MEMBERS]
        params["ensembles"] = {"all": {"members": listed}, "two": {"members": listed[:2]}}
        params["run"]["ensembles"] = ["all", "two"]

    edit_params(paths.PARAMS, change)
    for (variant, seed), temperature in zip(MEMBERS, TEMPERATURES, strict=True):
        save_member(variant, seed, temperature)
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    return project


def run_with(name: str = "all", **settings: object) -> tuple[dict[str, Any], pd.DataFrame]:
    """Evaluate an ensemble in float32; return metrics and predictions."""
    edit_params(
        paths.PARAMS,
        lambda params: params["evaluate"].update({"precision": "float32"} | settings),
    )
    ensemble.main("tiny", name)
    metrics = json.loads(paths.metrics("tiny", name).read_text())
    return metrics, pd.read_csv(paths.predictions("tiny", name))


def probabilities(*members: tuple[str, int]) -> np.ndarray:
    """Return each member's calibrated probabilities for each test image."""
    images = make_images(N, seed=2).images
    found = []
    for variant, seed in members:
        network, description = storage.load(paths.model("tiny", variant, seed))
        logits = network(images).numpy().astype(float)
        found.append(softmax(logits / description.temperature, axis=1))
    return np.array(found)


@pytest.mark.parametrize(("name", "members"), [("all", MEMBERS), ("two", MEMBERS[:2])])
def test_probabilities_are_the_mean_of_the_members(
    trained: Path, name: str, members: tuple[tuple[str, int], ...]
) -> None:
    """Classes and confidences are those of the mean of the members' calibrated probabilities."""
    metrics, predictions = run_with(name)
    mean = probabilities(*members).mean(axis=0)
    assert predictions["prediction"].tolist() == mean.argmax(axis=1).tolist()
    assert predictions["confidence"].tolist() == pytest.approx(mean.max(axis=1), abs=1e-5)
    labels = make_images(N, seed=2).labels
    assert metrics["accuracy"] == oracle.accuracy_score(labels, mean.argmax(axis=1))
    assert metrics["nll"] == pytest.approx(oracle.log_loss(labels, mean), abs=1e-5)
    assert metrics["balanced_accuracy"] == pytest.approx(
        oracle.balanced_accuracy_score(labels, mean.argmax(axis=1)), abs=1e-8
    )


def test_an_ensemble_has_one_result_in_the_form_of_an_evaluation(trained: Path) -> None:
    """Predictions, mistakes, curves and metrics have the form of a variant's with one seed."""
    metrics, predictions = run_with()
    assert list(predictions.columns) == ["seed", "index", "label", "prediction", "confidence"]
    assert predictions["seed"].tolist() == [0] * N
    assert predictions["index"].tolist() == list(range(N))
    assert predictions["label"].tolist() == make_images(N, seed=2).labels.tolist()
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    mistakes = pd.read_csv(paths.mistakes("tiny", "all"))
    pd.testing.assert_frame_equal(mistakes, wrong.reset_index(drop=True))
    assert (metrics["n"], metrics["errors"]) == (N, len(wrong))
    assert (metrics["temperature"], metrics["calibrated_nll"]) == (1, metrics["nll"])
    assert metrics["precision"] == "float32"
    curve = pd.read_csv(paths.calibration("tiny", "all"))
    assert curve.groupby("calibrated")["images"].sum().tolist() == [N, N]


def test_any_chunk_size_gives_the_same_predictions(trained: Path) -> None:
    """Chunks of any size, also larger than the test set, give the same predictions and metrics."""
    expected, rows = run_with(chunk_size="auto")
    for chunk_size in (7, 59, 1000):
        metrics, predictions = run_with(chunk_size=chunk_size)
        for key in ("n", "errors", "accuracy", "balanced_accuracy", "nll", "ece"):
            assert metrics[key] == pytest.approx(expected[key], abs=2e-6)
        pd.testing.assert_frame_equal(predictions, rows, atol=2e-6, rtol=0)


def test_results_are_the_same_each_time(trained: Path) -> None:
    """Evaluated twice, an ensemble has the same bytes: the results hold no measurement."""
    run_with()
    first = [path("tiny", "all").read_bytes() for path in WRITTEN]
    run_with()
    assert [path("tiny", "all").read_bytes() for path in WRITTEN] == first


def test_progress_counts_the_images_of_every_member(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The log ends with all images of all members counted."""
    run_with()
    assert f"evaluate tiny/all: {3 * N}/{3 * N} images (100%)" in capsys.readouterr().err


def test_a_member_that_is_not_trained_is_one_clear_line(trained: Path) -> None:
    """A member without a model is named before anything is computed, and nothing is written."""
    paths.model("tiny", "tiny_conv", 3).unlink()
    result = run_stage("ensemble", "tiny", "all", cwd=trained)
    assert_one_clear_line(
        result,
        "models/tiny/tiny_conv/seed_3.safetensors: is a member of the ensemble and not trained",
        "train its variant with that seed, or correct the list in params.yaml",
    )
    assert "images" not in result.stderr
    assert not any(path("tiny", "all").exists() for path in WRITTEN)
    assert no_parts(trained)


@pytest.mark.slow
def test_an_unknown_ensemble_is_one_clear_line(trained: Path) -> None:
    """An ensemble that is not in params.yaml is rejected with the nearest one."""
    assert_one_clear_line(
        run_stage("ensemble", "tiny", "tow", cwd=trained),
        "ensembles: there is no 'tow'; did you mean 'two'",
    )


@pytest.mark.slow
def test_a_damaged_member_is_one_clear_line(trained: Path) -> None:
    """A member that cannot be read, even the last one, is named, and nothing is written."""
    paths.model("tiny", "tiny_dense", 0).write_bytes(b"bad")
    assert_one_clear_line(
        run_stage("ensemble", "tiny", "all", cwd=trained),
        "models/tiny/tiny_dense/seed_0.safetensors: cannot be read as a model",
    )
    assert not any(path("tiny", "all").exists() for path in WRITTEN)
    assert no_parts(trained)


@pytest.mark.slow
def test_images_of_another_size_are_one_clear_line(trained: Path) -> None:
    """Models for images of another size are rejected in one line, and nothing is written."""
    other = Split(np.zeros((4, 14, 14, 1), np.uint8), np.zeros(4, np.uint8))
    save_split(paths.prepared("tiny", "test"), other)
    assert_one_clear_line(
        run_stage("ensemble", "tiny", "all", cwd=trained),
        "expects images of (12, 12, 1), the test images are (14, 14, 1); train it again",
    )
    assert not any(path("tiny", "all").exists() for path in WRITTEN)


@pytest.mark.slow
def test_a_budget_that_the_probabilities_use_up_is_one_clear_line(trained: Path) -> None:
    """If the memory budget does not hold one image, the ensemble says so."""
    edit_params(paths.PARAMS, lambda params: params["evaluate"].update(memory_budget_mb=40))
    assert_one_clear_line(
        run_stage("ensemble", "tiny", "all", cwd=trained),
        "does not hold one image; this model needs at least",
    )


def test_extreme_logits_have_a_finite_loss(trained: Path) -> None:
    """Members that are certain of a wrong class have a finite loss, as each has alone."""
    for variant, seed in MEMBERS:
        network, description = storage.load(paths.model("tiny", variant, seed))
        for weight in network.trainable_variables:
            if weight.path.startswith(description.place_layers()[-1].name):
                weight.assign(weight * 1e5)
        storage.save(paths.model("tiny", variant, seed), network, description)
    metrics, _ = run_with()
    assert np.isfinite(metrics["nll"])
