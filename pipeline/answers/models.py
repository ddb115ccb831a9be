"""Trained models that answer: the probability of each class for prepared images."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.answers.settings import Pictures
from pipeline.core import paths
from pipeline.core.errors import ModelError
from pipeline.core.params import Params, nearest
from pipeline.datasets.splits import class_names
from pipeline.network import storage
from pipeline.network.chunks import Evaluate
from pipeline.network.device import find_device
from pipeline.network.framework import tf
from pipeline.network.inference import choose_chunk_size

LARGEST_TEST_SET = 1 << 31


class Guess(NamedTuple):
    """A class and the model's calibrated confidence in it, 0…1."""

    name: str
    confidence: float


class Model:
    """A trained variant, with the mean of its seeds' probabilities.

    Parameters
    ----------
    dataset, variant : str
        What it was trained on, and its name.
    settings : Evaluate
        Of precision and memory.

    Attributes
    ----------
    shape : (int, int, int)
        Height, width and channels of its images.
    classes : list of str
    chunk_size : int
        The largest number of images at once that the memory budget holds.

    Raises
    ------
    ModelError
        If it is not trained, or a file is damaged.
    """

    def __init__(self, dataset: str, variant: str, settings: Evaluate) -> None:
        self.dataset, self.variant = dataset, variant
        self.precision = find_device().precision(settings.precision)
        seeds = storage.trained_seeds(paths.models(dataset, variant))
        files = [paths.model(dataset, variant, seed) for seed in seeds]
        loaded = [storage.load(file, self.precision) for file in files]
        description = loaded[0].description
        self.seeds, self.parameters = seeds, description.parameters
        self.temperatures = [each.description.temperature for each in loaded]
        height, width, channels = description.image_shape
        self.shape = (height, width, channels)
        self.classes = description.class_names or class_names(description.classes)
        self.chunk_size = choose_chunk_size(loaded[0], settings, LARGEST_TEST_SET)
        networks = [each.network for each in loaded]

        self._forward = tf.function(
            lambda images: [network(images, training=False) for network in networks],
            input_signature=[tf.TensorSpec((None, *self.shape), tf.uint8)],
        )

    def probabilities(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        """Return the calibrated probabilities (n, classes) of images (n, height, width, channels).

        They are computed in chunks that the memory budget holds.
        """
        parts = [
            self._chunk(images[start : start + self.chunk_size])
            for start in range(0, len(images), self.chunk_size)
        ]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)))

    def _chunk(self, images: NDArray[np.uint8]) -> NDArray[np.float64]:
        logits = self._forward(images)
        scaled = [
            softmax(each.numpy().astype(np.float64) / temperature, axis=1)
            for each, temperature in zip(logits, self.temperatures, strict=True)
        ]
        mean: NDArray[np.float64] = np.mean(scaled, axis=0)
        return mean

    def best(self, probabilities: NDArray[np.float64], count: int = 3) -> list[Guess]:
        """Return the most likely classes of an image, given its probabilities (classes,)."""
        order = np.argsort(-probabilities, kind="stable")[:count].tolist()
        return [Guess(self.classes[label], float(probabilities[label])) for label in order]


def trained_variants(dataset: str) -> list[str]:
    """Return the variants that have models on a data set, that with the fewest errors first.

    Those that were not evaluated come last, by name.
    """
    folder = paths.models(dataset, "any").parent
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    found = [name for name in names if any(paths.models(dataset, name).glob("seed_*.safetensors"))]
    return sorted(found, key=lambda name: _errors(paths.metrics(dataset, name)))


def _errors(metrics: Path) -> float:
    try:
        return float(json.loads(metrics.read_text())["errors"])
    except (OSError, ValueError, KeyError, TypeError):
        return float("inf")


def choose_dataset(params: Params, wanted: str | None) -> str:
    """Return the data set whose models answer: the wanted one, or the largest of those trained.

    Raises
    ------
    ModelError
        If none is trained.
    """
    known: Sequence[str] = list(params.content.get("datasets", {}))
    if wanted is not None:
        if not trained_variants(wanted):
            raise ModelError(
                f"{wanted}: has no trained model; train one, or fetch it: dvc pull; "
                f"{nearest(wanted, known)}"
            )
        return wanted
    trained = [name for name in known if trained_variants(name)]
    for name in ("mnist_record", "mnist"):
        if name in trained:
            return name
    if not trained:
        raise ModelError("no model is trained yet; run the pipeline: make run")
    return trained[0]


def pictures_of(params: Params, dataset: str) -> Pictures | None:
    """Return how the makers of a data set prepared its images; None if params.yaml has nothing."""
    row = params.content.get("datasets", {}).get(dataset, {})
    if not isinstance(row, dict) or row.get("pictures") is None:
        return None
    settings: Pictures = params.get(f"datasets.{dataset}.pictures", Pictures)
    return settings
