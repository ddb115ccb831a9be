import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from pipeline import export
from pipeline.core import paths
from pipeline.core.errors import ExportError, ModelError
from pipeline.datasets.splits import save_split
from pipeline.exporting.onnx_model import OnnxRuntime, make_onnx
from pipeline.exporting.saved_model import SavedModel, save_saved_model
from pipeline.network import storage
from pipeline.network.build import build
from tests.helpers import assert_one_clear_line, make_images, no_parts, run_stage
from tests.network.helpers import describe, network

pytestmark = pytest.mark.slow  # TensorFlow takes seconds to save a model

N = 60
SEEDS = (0, 4)


@pytest.fixture
def trained(project: Path) -> Path:
    """A project with a test set and models of two seeds, as if they had been trained."""
    row = network(
        {"type": "conv", "filters": 4, "kernel": 3},
        {"type": "batch_norm"},
        {"type": "max_pool", "size": 2, "stride": 2},
        {"type": "lrn", "depth_radius": 1, "bias": 1.0, "alpha": 1e-4, "beta": 0.75},
        {"type": "dense", "units": 8},
    )
    description = describe(row, (12, 12, 1), classes=3).model_copy(
        update={"dataset": "tiny", "variant": "tiny_conv", "temperature": 1.5}
    )
    for seed in SEEDS:
        storage.save(
            paths.model("tiny", "tiny_conv", seed), build(description, seed=seed), description
        )
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    return project


def content_of(folder: Path) -> dict[str, bytes]:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def test_each_seeds_model_is_exported_and_checked(trained: Path) -> None:
    """The stage of dvc.yaml writes both formats of each seed, and how far they agree."""
    done = run_stage("export", "tiny", "tiny_conv", cwd=trained)
    assert done.returncode == 0, done.stderr
    assert "export tiny/tiny_conv: 240/240 images (100%)" in done.stderr
    folder = paths.exports("tiny", "tiny_conv")
    assert sorted(path.name for path in folder.iterdir()) == [
        "seed_0", "seed_0.onnx", "seed_4", "seed_4.onnx",
    ]  # fmt: skip
    agreements = json.loads(paths.export("tiny", "tiny_conv").read_text())
    assert list(agreements) == ["0", "4"]
    images = make_images(N, seed=2).images
    for seed in SEEDS:
        expected = storage.load(paths.model("tiny", "tiny_conv", seed)).network(images).numpy()
        of_onnx = OnnxRuntime((folder / f"seed_{seed}.onnx").read_bytes()).logits(images)
        of_tensorflow = SavedModel(folder / f"seed_{seed}").logits(images)
        for received, name in ((of_onnx, "onnx"), (of_tensorflow, "saved_model")):
            np.testing.assert_allclose(received, expected, atol=1e-4)
            agreement = agreements[str(seed)][name]
            assert agreement["images"] == N
            assert agreement["other_predictions"] == 0
            assert 0 <= agreement["largest_logit_difference"] < 1e-4


def test_an_export_again_has_the_same_bytes(trained: Path) -> None:
    """The stage run twice gives the same bytes, and leaves nothing of models that are gone."""
    contents = []
    for _ in range(2):
        assert run_stage("export", "tiny", "tiny_conv", cwd=trained).returncode == 0
        agreements = {"agreements": paths.export("tiny", "tiny_conv").read_bytes()}
        contents.append(content_of(paths.exports("tiny", "tiny_conv")) | agreements)
    assert list(contents[0]) == list(contents[1])
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []
    paths.model("tiny", "tiny_conv", 4).unlink()
    export.main("tiny", "tiny_conv")
    assert sorted(path.name for path in paths.exports("tiny", "tiny_conv").iterdir()) == [
        "seed_0", "seed_0.onnx",
    ]  # fmt: skip


def test_a_wrong_onnx_file_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a weight in the ONNX file is wrong, the export is refused, and no file is left."""

    def wrong(*arguments: Any) -> onnx.ModelProto:
        model = make_onnx(*arguments)
        [kernel] = [each for each in model.graph.initializer if each.name == "conv1_kernel"]
        values = numpy_helper.to_array(kernel).copy()
        values[0, 0, 1, 1] += 3
        kernel.CopyFrom(numpy_helper.from_array(values, kernel.name))
        return model

    monkeypatch.setattr(export, "make_onnx", wrong)
    with pytest.raises(
        ExportError, match="seed_0.safetensors, as ONNX: .* it was not written"
    ) as it:
        export.main("tiny", "tiny_conv")
    assert "\n" not in str(it.value)
    assert content_of(paths.exports("tiny", "tiny_conv")) == {}
    assert not paths.export("tiny", "tiny_conv").exists()
    assert no_parts(trained)


def test_a_wrong_saved_model_is_refused(trained: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If the SavedModel answers otherwise, the export is refused, and no folder of it is left."""

    def wrong(folder: Path, loaded: Any) -> None:
        weight = loaded.network.trainable_variables[0]
        right = weight.numpy()
        weight.assign(right + 3)
        save_saved_model(folder, loaded)
        weight.assign(right)

    monkeypatch.setattr(export, "save_saved_model", wrong)
    with pytest.raises(ExportError, match="seed_0.safetensors, as a SavedModel: .* differ"):
        export.main("tiny", "tiny_conv")
    assert list(content_of(paths.exports("tiny", "tiny_conv"))) in ([], ["seed_0.onnx"])
    assert not list(paths.exports("tiny", "tiny_conv").glob("*.unchecked"))
    assert not paths.export("tiny", "tiny_conv").exists()


def test_a_difference_that_is_no_number_is_refused() -> None:
    """Logits that are no numbers are no agreement, nor is a single other prediction."""
    export.require_agreement("it", export.Agreement(10, 0, 1e-5))
    for wrong in ((10, 0, float("nan")), (10, 0, 0.02), (10, 1, 0.0)):
        with pytest.raises(ExportError, match="it: .* of 10 predictions differ"):
            export.require_agreement("it", export.Agreement(*wrong))


def test_without_a_model_the_error_tells_the_remedy(project: Path) -> None:
    """If there is no model, the error says to train the variant."""
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    with pytest.raises(ModelError, match="models/tiny/tiny_conv: expected models, .*; train the"):
        export.main("tiny", "tiny_conv")


def test_bad_input_is_one_clear_line(trained: Path) -> None:
    """A corrupt model and a missing test set each end the stage with one line."""
    paths.model("tiny", "tiny_conv", 4).write_bytes(b"bad")
    done = run_stage("export", "tiny", "tiny_conv", cwd=trained)
    assert_one_clear_line(done, "seed_4.safetensors: cannot be read as a model")
    shutil.rmtree(paths.prepared("tiny", "test"))
    done = run_stage("export", "tiny", "tiny_conv", cwd=trained)
    assert_one_clear_line(done, "data/prepared/tiny/test")
    assert not paths.export("tiny", "tiny_conv").exists()
    assert no_parts(trained)
