import json
from collections.abc import Callable
from functools import partial
from pathlib import Path

import keras
import numpy as np
import pandas as pd
import pytest
import tensorflow as tf
from sklearn import metrics as oracle

from benchmarks import chunks
from pipeline import evaluate, model, paths
from pipeline.data import Split, SplitReader, save_split
from pipeline.device import find_device
from pipeline.errors import EvaluationError, ModelError
from pipeline.evaluate import ChunkedForward, bytes_per_image, choose_chunk_size
from pipeline.params import Params
from pipeline.variants import Variant
from tests.conftest import (
    ROOT,
    assert_one_clear_line,
    edit_params,
    make_images,
    no_parts,
    run_stage,
)
from tests.test_model import describe, described

N = 60


@pytest.fixture
def trained(project: Path) -> Path:
    """A project with a test set and a model, as if they had been prepared and trained."""
    row: Variant = Params().get("variants.tiny_conv", Variant)
    description = describe(row.network(), (12, 12, 1)).model_copy(update={"classes": 3})
    model.save(paths.model("tiny", "tiny_conv", 0), model.build(description, seed=1), description)
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    return project


def run_with(chunk_size: object) -> tuple[dict, pd.DataFrame]:  # type: ignore[type-arg]
    def change(params: dict) -> None:  # type: ignore[type-arg]
        params["evaluate"]["chunk_size"] = chunk_size

    edit_params(paths.PARAMS, change)
    evaluate.main("tiny", "tiny_conv")
    metrics = json.loads(paths.metrics("tiny", "tiny_conv").read_text())
    return metrics, pd.read_csv(paths.predictions("tiny", "tiny_conv"))


def test_metrics_and_predictions_agree_with_scikit_learn(trained: Path) -> None:
    """Metrics are scikit-learn's on the predictions, which have one row for each image."""
    metrics, predictions = run_with("auto")
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
    assert metrics["errors"] == (predictions["label"] != predictions["prediction"]).sum() > 0
    assert metrics["accuracy_low"] < metrics["accuracy"] < metrics["accuracy_high"]
    assert set(metrics) == {
        "n", "errors", "accuracy", "accuracy_low", "accuracy_high", "nll", "ece", "evaluation",
        "warning",
    }  # fmt: skip
    assert metrics["warning"] == "no better than chance with seed 0"  # it was never trained
    assert metrics["evaluation"]["precision"] == find_device().precision("auto")
    assert metrics["evaluation"]["chunk_size"] == N
    assert metrics["evaluation"]["backoffs"] == 0
    assert metrics["evaluation"]["peak_memory_mb"] < 128
    assert metrics["evaluation"]["images_per_second"] > 0


def test_each_seeds_model_is_evaluated(trained: Path) -> None:
    """Models of several seeds have their rows and diagrams, one after the other, and their mean."""
    network, description = model.load(paths.model("tiny", "tiny_conv", 0))
    alone, rows = run_with("auto")
    diagram = pd.read_csv(paths.reliability("tiny", "tiny_conv"))
    for weight in network.trainable_variables:
        weight.assign(weight * 0.5)
    model.save(paths.model("tiny", "tiny_conv", 7), network, description)
    metrics, predictions = run_with("auto")
    assert predictions["seed"].tolist() == [0] * N + [7] * N
    pd.testing.assert_frame_equal(predictions[:N], rows)
    errors = (predictions["label"] != predictions["prediction"]).groupby(predictions["seed"]).sum()
    assert [metrics["by_seed"][seed]["errors"] for seed in ("0", "7")] == errors.tolist()
    assert metrics["by_seed"]["0"] == {key: alone[key] for key in metrics["by_seed"]["0"]}
    assert metrics["errors"] == errors.mean()
    both = pd.read_csv(paths.reliability("tiny", "tiny_conv"))
    pd.testing.assert_frame_equal(both[both["seed"] == 0], diagram)
    assert both.groupby("seed")["images"].sum().tolist() == [N, N]
    assert list(both.columns) == ["seed", "confidence", "accuracy", "images"]


def test_without_a_model_the_remedy_is_told(project: Path) -> None:
    """Where no model is, the line says so."""
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    with pytest.raises(ModelError, match="models/tiny/tiny_conv: expected models, .*; train the"):
        evaluate.main("tiny", "tiny_conv")


def test_any_chunk_size_gives_the_same_predictions(trained: Path) -> None:
    """Any chunk size, ragged tail or larger than the set, gives the same rows and counts."""
    expected, rows = run_with("auto")
    for chunk_size in (1, 7, 30, 59, 60, 1000):
        metrics, predictions = run_with(chunk_size)
        assert metrics["evaluation"].pop("chunk_size") == min(chunk_size, N)
        for key in ("n", "errors", "accuracy", "nll", "ece"):
            assert metrics[key] == pytest.approx(expected[key], abs=2e-6)
        pd.testing.assert_frame_equal(predictions, rows, atol=2e-6, rtol=0)


class Greedy(keras.Model):
    """A network for which memory runs out above some number of images."""

    def __init__(self, inner: keras.Model, limit: int) -> None:
        super().__init__()
        self.inner, self.limit = inner, limit

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        shape: tuple[int | None, ...] = self.inner.input_shape
        return shape

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        if images.shape[0] > self.limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return self.inner(images, training=training)


def test_out_of_memory_halves_the_chunk_and_loses_no_image(trained: Path) -> None:
    """When memory runs out, the chunk is halved until it fits, and no image is left out."""
    network = model.load(paths.model("tiny", "tiny_conv", 0)).network
    with SplitReader(paths.prepared("tiny", "test")) as reader:
        forward = ChunkedForward(Greedy(network, 20), 60, 1)
        logits = np.concatenate([chunk.logits for chunk in forward.run(reader)])
        assert (forward.chunk_size, forward.backoffs) == (15, 2)
        np.testing.assert_allclose(logits, network(reader.read(0, N).images), atol=1e-5)


def test_memory_for_not_one_image_is_an_error(trained: Path) -> None:
    """Where not one image fits, the evaluation ends with the remedy."""
    network = model.load(paths.model("tiny", "tiny_conv", 0)).network
    with pytest.raises(EvaluationError, match="does not suffice for a single image"):
        ChunkedForward(Greedy(network, 0), 60, 1).warm_up()


def test_memory_that_the_host_refuses_halves_the_chunk(trained: Path) -> None:
    """A chunk that the host cannot hold is halved before TensorFlow sees it."""
    network = model.load(paths.model("tiny", "tiny_conv", 0)).network
    forward = ChunkedForward(network, 64, 2**53)
    with pytest.raises(EvaluationError, match="does not suffice"):
        forward.warm_up()
    assert forward.backoffs == 6


def loaded(variant: str, precision: str = "float32") -> model.LoadedModel:
    description = described(variant)
    return model.build_for_inference(description, precision)


def test_the_chunk_follows_the_budget_and_the_layers() -> None:
    """A larger budget allows more images, larger layers fewer."""
    small, large = loaded("lenet5"), loaded("alexnet_norm")
    assert choose_chunk_size(small, 60) > choose_chunk_size(large, 60)
    assert choose_chunk_size(large, 256) > choose_chunk_size(large, 128) > 1
    # conv1 is the widest: behind it, 28×28×64 go into the pool, with two copies of it.
    assert bytes_per_image(large) == 4 * (28 * 28 * 64 * 3 + 14 * 14 * 64)


def test_in_half_the_bytes_pass_twice_as_many_images() -> None:
    """An image takes half as much memory in bfloat16, and the chunk is twice as large."""
    full, half = loaded("alexnet_norm"), loaded("alexnet_norm", "mixed_bfloat16")
    assert bytes_per_image(full) == 2 * bytes_per_image(half)
    assert choose_chunk_size(half, 128) // 2 == choose_chunk_size(full, 128)


def test_a_budget_for_not_one_image_is_refused() -> None:
    """A budget that holds no image is refused, with the one that would."""
    with pytest.raises(EvaluationError, match="of 10 does not hold one image; .* at least"):
        choose_chunk_size(loaded("alexnet_norm"), 10)


def test_images_of_another_size_are_refused(trained: Path) -> None:
    """A model of another image size is refused in one line, and nothing is written."""
    other = Split(np.zeros((4, 14, 14, 1), np.uint8), np.zeros(4, np.uint8))
    save_split(paths.prepared("tiny", "test"), other)
    assert_one_clear_line(
        run_stage("evaluate", "tiny", "tiny_conv", cwd=trained),
        "takes images of (12, 12, 1), the test images are (14, 14, 1); train it again",
    )
    assert not paths.metrics("tiny", "tiny_conv").exists()
    assert no_parts(trained)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda root: (root / "models/tiny/tiny_conv/seed_0.safetensors").write_bytes(b"bad"),
         "cannot be read as a model"),
        (lambda root: (root / "predictions").write_text(""), "predictions/tiny/tiny_conv.csv: cannot"),
        (lambda root: edit_params(root / "params.yaml", lambda params: params["evaluate"].update(
            chunk_size=0)), "evaluate.chunk_size"),
        (lambda root: edit_params(root / "params.yaml", lambda params: params["evaluate"].update(
            memory_budget_mb=-1)), "evaluate.memory_budget_mb: input should be greater than 0"),
    ],
)  # fmt: skip
def test_bad_input_is_one_clear_line(
    trained: Path, damage: Callable[[Path], object], message: str
) -> None:
    """A corrupt model, an unwritable folder or a wrong setting is one clear line."""
    damage(trained)
    assert_one_clear_line(run_stage("evaluate", "tiny", "tiny_conv", cwd=trained), message)
    assert not paths.metrics("tiny", "tiny_conv").exists()
    assert no_parts(trained)


LIMIT_MB = 700  # of address space over the loaded model: less than all at once need


@pytest.mark.slow
def test_under_an_address_space_limit_the_counts_are_the_same(tmp_path: Path) -> None:
    """Where a hard limit makes the full-set pass fail, evaluation ends with the same counts."""
    chunks.write_random_split(tmp_path, 8_000)
    measure = partial(chunks.measure_apart, "alexnet_dropout", tmp_path)
    with pytest.raises(RuntimeError):
        measure(plain=True, limit_mb=LIMIT_MB)
    free, limited = measure(), measure(limit_mb=LIMIT_MB)
    halved = measure(8_000, limit_mb=LIMIT_MB)
    assert free["errors"] == limited["errors"] == halved["errors"]
    assert limited["backoffs"] == 0 < halved["backoffs"]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_test_set(tmp_path: Path) -> None:
    """2,000 and 20,000 images stay within the budget, and within 20 MB of each other."""
    peaks = []
    for images in (2_000, 20_000):
        chunks.write_random_split(tmp_path / str(images), images)
        figures = chunks.measure_apart("alexnet_dropout", tmp_path / str(images))
        peaks.append(figures["peak_memory_mb"])
    budget: float = Params(ROOT / "params.yaml").get("evaluate.memory_budget_mb", float)
    assert max(peaks) < budget
    assert abs(peaks[0] - peaks[1]) < 20


def test_progress_counts_images(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The log ends with all images counted."""
    evaluate.main("tiny", "tiny_conv")
    assert "evaluate tiny/tiny_conv: 60/60 images (100%)" in capsys.readouterr().err
