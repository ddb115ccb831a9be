import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import safetensors.numpy

from pipeline.core.errors import ModelError
from pipeline.network import storage
from pipeline.network.build import build
from tests.network.helpers import described


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (4, 28, 28, 1), dtype=np.uint8)


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    description = described("lenet5")
    path = tmp_path / "model.safetensors"
    storage.save(path, build(description, seed=3), description)
    return path


def test_a_model_is_loaded_as_it_was_saved(saved: Path, images: np.ndarray) -> None:
    """A loaded model gives the logits of the saved one, and has its description."""
    loaded = storage.load(saved)
    assert loaded.description == described("lenet5")
    np.testing.assert_array_equal(
        loaded.network(images), build(described("lenet5"), seed=3)(images)
    )


def test_a_model_of_bfloat16_keeps_float32_weights_and_its_logits(
    tmp_path: Path, images: np.ndarray
) -> None:
    """Weights are saved as float32 in any precision, and loading for bfloat16 keeps the logits."""
    description = described("alexnet_dropout")
    trained = build(description, precision="mixed_bfloat16")
    storage.save(tmp_path / "model", trained, description)
    weights = safetensors.numpy.load_file(tmp_path / "model")
    assert {array.dtype for array in weights.values()} == {np.dtype(np.float32)}
    assert "conv1/kernel" in weights
    network = storage.load(tmp_path / "model", "mixed_bfloat16").network
    np.testing.assert_array_equal(network(images), trained(images))


def test_equal_models_are_saved_as_equal_bytes(saved: Path, tmp_path: Path) -> None:
    """Saving an equal model gives the same bytes."""
    loaded = storage.load(saved)
    storage.save(tmp_path / "again", loaded.network, loaded.description)
    assert (tmp_path / "again").read_bytes() == saved.read_bytes()


def test_names_and_temperature_are_in_the_header(tmp_path: Path) -> None:
    """The header has the names of the classes and the temperature, as whoever exports needs them."""
    names = ["cat", "dog", *"abcdefgh"]
    description = described("lenet5").model_copy(
        update={"class_names": names, "temperature": 1.234}
    )
    storage.save(tmp_path / "model", build(description), description)
    assert storage.load(tmp_path / "model").description == description
    with safetensors.safe_open(tmp_path / "model", "numpy") as file:
        header = json.loads(file.metadata()[storage.HEADER_KEY])
    assert (header["format"], header["class_names"], header["temperature"]) == (2, names, 1.234)


def test_a_model_of_format_1_is_read(saved: Path, images: np.ndarray) -> None:
    """A model from before classes had names and models a temperature gives the same logits."""
    expected = storage.load(saved).network(images)
    header = described("lenet5").model_dump(exclude={"class_names", "temperature"})
    rewrite(saved, header=json.dumps(header | {"format": 1}))
    loaded = storage.load(saved)
    assert loaded.description.temperature == 1.0
    np.testing.assert_array_equal(loaded.network(images), expected)


@pytest.mark.parametrize("keep", [0, 7, 500, -1])
def test_a_truncated_model_is_rejected(saved: Path, keep: int) -> None:
    """A truncated model file is rejected, with the remedy."""
    saved.write_bytes(saved.read_bytes()[:keep])
    with pytest.raises(ModelError, match="cannot be read as a model .* train it again"):
        storage.load(saved)


def test_a_missing_model_is_named(tmp_path: Path) -> None:
    """If the model file is missing, the error names it."""
    with pytest.raises(ModelError, match="none: cannot be read as a model"):
        storage.load(tmp_path / "none")


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (Path("pwned"),)  # type: ignore[return-value]


def test_a_pickle_is_rejected_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pickle in the place of a model is rejected, and nothing in it is run."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(ModelError, match="cannot be read as a model"):
        storage.load(tmp_path / "model")
    assert not (tmp_path / "pwned").exists()


def rewrite(path: Path, *, header: str | None = None, drop: str = "", reshape: str = "") -> None:
    """Save a model's weights again, with one thing wrong."""
    with safetensors.safe_open(path, "numpy") as file:
        metadata = file.metadata()
    weights = safetensors.numpy.load_file(path)
    weights.pop(drop, None)
    if reshape:
        weights[reshape] = weights[reshape].reshape(-1)
    metadata = {storage.HEADER_KEY: header} if header is not None else metadata
    path.write_bytes(safetensors.numpy.save(weights, metadata=metadata))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"header": "{"}, "its description is damaged"),
        ({"header": json.dumps({"dataset": "x"})}, "its description is damaged"),
        ({"header": described("lenet5").model_copy(update={"format": 3}).model_dump_json()},
         "its description is damaged"),
        ({"drop": "conv1/bias"}, "its weights do not match its layers"),
        ({"reshape": "conv1/kernel"}, "conv1/kernel: expected float32 of shape"),
    ],
)  # fmt: skip
def test_an_inconsistent_model_is_rejected(
    saved: Path, wrong: dict[str, str], message: str
) -> None:
    """A damaged description, a missing weight or a wrong shape is rejected, with the remedy."""
    rewrite(saved, **wrong)
    with pytest.raises(ModelError, match=f"{message}.*train it again"):
        storage.load(saved)


def test_a_file_of_another_project_is_rejected(tmp_path: Path) -> None:
    """A safetensors file without this project's header is rejected."""
    path = tmp_path / "other"
    path.write_bytes(safetensors.numpy.save({"a": np.zeros(3)}))
    with pytest.raises(ModelError, match="is it from another project"):
        storage.load(path)


def test_a_description_larger_than_the_file_is_rejected(saved: Path) -> None:
    """A description that promises terabytes of weights is rejected before any is allocated."""
    with safetensors.safe_open(saved, "numpy") as file:
        description = json.loads(file.metadata()[storage.HEADER_KEY])
    description["network"]["layers"].append({"type": "dense", "units": 10**9, "activation": "relu"})
    rewrite(saved, header=json.dumps(description))
    with pytest.raises(ModelError, match="is too short for its [0-9,]+ weights"):
        storage.load(saved)


def test_seeds_are_those_of_the_model_files(tmp_path: Path) -> None:
    """A folder's seeds are the numbers in its models' names, sorted; other files do not count."""
    for name in ("seed_10", "seed_2", "seed_3.part", "other"):
        (tmp_path / f"{name}.safetensors").touch()
    (tmp_path / "seed_4").touch()
    assert storage.trained_seeds(tmp_path) == [2, 10]
    storage.remove_all(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "other.safetensors", "seed_3.part.safetensors", "seed_4",
    ]  # fmt: skip


def test_without_models_the_error_tells_the_remedy(tmp_path: Path) -> None:
    """If a folder has no model, the error says what to do; there is nothing to remove."""
    for folder in (tmp_path, tmp_path / "missing"):
        storage.remove_all(folder)
        with pytest.raises(ModelError, match="expected models, .*; train the variant"):
            storage.trained_seeds(folder)
