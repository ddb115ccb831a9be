import json
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.answers import models
from pipeline.answers.models import Model
from pipeline.answers.settings import Pictures
from pipeline.core import paths
from pipeline.core.errors import ModelError, ParamsError
from pipeline.core.params import Params
from pipeline.network import storage
from tests.answers.helpers import SETTINGS, add_pictures, save_model
from tests.helpers import edit_params

TEMPERATURES = {0: 0.5, 3: 1.7, 8: 1.0}


@pytest.fixture
def images() -> NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, (23, 28, 28, 1), np.uint8)


@pytest.fixture
def trained(project: Path) -> Path:
    """A project with a variant of three seeds, each with a temperature of its own."""
    for seed, temperature in TEMPERATURES.items():
        save_model("tiny", "tiny_conv", seed, temperature=temperature)
    return project


def test_probabilities_are_the_mean_of_the_seeds(trained: Path, images: NDArray[np.uint8]) -> None:
    """Probabilities equal NumPy's mean of SciPy's softmax of each seed's calibrated logits."""
    parts = []
    for seed, temperature in TEMPERATURES.items():
        network = storage.load(paths.model("tiny", "tiny_conv", seed)).network
        parts.append(softmax(network(images).numpy().astype(float) / temperature, axis=1))
    model = Model("tiny", "tiny_conv", SETTINGS)
    np.testing.assert_allclose(model.probabilities(images), np.mean(parts, axis=0), atol=1e-6)
    assert model.seeds == [0, 3, 8]
    assert model.temperatures == list(TEMPERATURES.values())
    assert model.shape == (28, 28, 1)
    assert model.precision == "float32"
    assert model.parameters == storage.describe(paths.model("tiny", "tiny_conv", 0)).parameters


@pytest.mark.parametrize("chunk_size", [1, 5, 22, 23, 100])
def test_chunks_of_any_size_give_the_same(
    trained: Path, images: NDArray[np.uint8], chunk_size: int
) -> None:
    """However many images are computed at once, the probabilities are the same."""
    expected = Model("tiny", "tiny_conv", SETTINGS).probabilities(images)
    model = Model("tiny", "tiny_conv", SETTINGS.model_copy(update={"chunk_size": chunk_size}))
    assert model.chunk_size == chunk_size
    np.testing.assert_allclose(model.probabilities(images), expected, atol=1e-6)


def test_no_images_have_no_probabilities(trained: Path) -> None:
    """Without images there are no probabilities, and no error."""
    none = np.zeros((0, 28, 28, 1), np.uint8)
    assert Model("tiny", "tiny_conv", SETTINGS).probabilities(none).shape == (0, 10)


def test_the_best_guesses_are_in_order(project: Path) -> None:
    """The most likely classes come first by their names; of equal ones the first."""
    save_model("tiny", "tiny_conv", classes=4, class_names=["cat", "dog", "cow", "<hen>"])
    model = Model("tiny", "tiny_conv", SETTINGS)
    guesses = model.best(np.array([0.25, 0.125, 0.25, 0.375]))
    assert guesses == [("<hen>", 0.375), ("cat", 0.25), ("cow", 0.25)]
    assert model.best(np.array([0, 0.5, 0, 0.5]), 1) == [("dog", 0.5)]


def test_two_classes_have_two_guesses(project: Path) -> None:
    """With fewer than three classes there are as many guesses, named by their numbers."""
    save_model("tiny", "tiny_conv", classes=2)
    guesses = Model("tiny", "tiny_conv", SETTINGS).best(np.array([0.25, 0.75]))
    assert guesses == [("1", 0.75), ("0", 0.25)]


def write_errors(variant: str, text: str) -> None:
    path = paths.metrics("tiny", variant)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_the_variant_with_the_fewest_errors_comes_first(project: Path) -> None:
    """Variants are sorted by errors; without metrics, or damaged ones, they come last, by name."""
    names = ["a", "b", "c", "d", "e"]
    for name in names:
        save_model("tiny", name)
    (paths.models("tiny", "untrained")).mkdir()
    write_errors("b", json.dumps({"errors": 12}))
    write_errors("d", json.dumps({"errors": 3.5}))
    write_errors("a", "{")
    write_errors("c", "[]")
    assert models.trained_variants("tiny") == ["d", "b", "a", "c", "e"]
    assert models.trained_variants("nosuch") == []


def test_without_a_model_the_error_tells_the_remedy(project: Path) -> None:
    """If nothing is trained, or not on the wanted data set, the error says how to get a model."""
    with pytest.raises(ModelError, match="no model is trained yet; run the pipeline: make run"):
        models.choose_dataset(Params(), None)
    with pytest.raises(ModelError, match="tinny: has no trained model; .*did you mean 'tiny'?"):
        models.choose_dataset(Params(), "tinny")
    with pytest.raises(ModelError, match="models/tiny/none: expected models"):
        Model("tiny", "none", SETTINGS)


def test_mnist_answers_before_the_others(project: Path) -> None:
    """The data set is the wanted one, or MNIST's record, or MNIST, or what is trained."""
    save_model("tiny", "net")
    assert models.choose_dataset(Params(), None) == "tiny"
    save_model("digits", "net")
    assert models.choose_dataset(Params(), None) == "digits"
    save_model("mnist", "net")
    assert models.choose_dataset(Params(), None) == "mnist"
    save_model("mnist_record", "net")
    assert models.choose_dataset(Params(), None) == "mnist_record"
    assert models.choose_dataset(Params(), "tiny") == "tiny"


def test_a_damaged_model_is_named(trained: Path) -> None:
    """If a seed's file is damaged, the error names it."""
    paths.model("tiny", "tiny_conv", 3).write_bytes(b"bad")
    with pytest.raises(ModelError, match="seed_3.safetensors: cannot be read as a model"):
        Model("tiny", "tiny_conv", SETTINGS)


def test_how_pictures_are_prepared_is_in_the_params(project: Path) -> None:
    """A data set without `pictures` has none; a wrong one is rejected by its name."""
    assert models.pictures_of(Params(), "tiny") is None
    add_pictures(20, "box")
    assert models.pictures_of(Params(), "tiny") == Pictures(longer_side=20, centre="box")
    add_pictures(20, "middle")
    with pytest.raises(ParamsError, match="datasets.tiny.pictures.centre: .*received 'middle'"):
        models.pictures_of(Params(), "tiny")
    edit_params(paths.PARAMS, lambda params: params["datasets"].pop("tiny"))
    edit_params(paths.PARAMS, lambda params: params["run"].update(datasets=["digits"]))
    assert models.pictures_of(Params(), "tiny") is None
