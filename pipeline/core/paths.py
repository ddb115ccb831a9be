"""Where each stage's results lie below the project's root; dvc.yaml names the same places.

Everything small lies under ``results/DATASET/VARIANT/`` and is kept by git; DVC keeps the rest.
"""

import os
from pathlib import Path

PARAMS = Path("params.yaml")

ROLES = ("train_images", "train_labels", "test_images", "test_labels")
WRITERS = "train_writers"  # a fifth file, of some data sets
SPLITS = ("train", "validation", "test")

RESULTS = Path("results")


def raw(dataset: str) -> Path:
    """Return the folder of a data set's IDX files: each of `ROLES`, and `WRITERS` if known."""
    return Path("data/raw") / dataset


def prepared(dataset: str, split: str) -> Path:
    """Return the folder of a split's ``images.npy`` and ``labels.npy``."""
    return Path("data/prepared") / dataset / split


def summary(dataset: str) -> Path:
    """Return the summary of a data set: shape, counts, pixel statistics, hashes."""
    return RESULTS / dataset / "summary.json"


def models(dataset: str, variant: str) -> Path:
    """Return the folder of the trained models, one per seed."""
    return Path("models") / dataset / variant


def model(dataset: str, variant: str, seed: int) -> Path:
    """Return the model trained with a seed."""
    return models(dataset, variant) / f"seed_{seed}.safetensors"


def checkpoints(dataset: str, variant: str) -> Path:
    """Return the folder of an unfinished training's checkpoints, which DVC does not know.

    Machines that share the folder in ``ALEXNET_MNIST_CHECKPOINTS`` can go on from each other's.
    """
    return Path(os.environ.get("ALEXNET_MNIST_CHECKPOINTS", "checkpoints")) / dataset / variant


def exports(dataset: str, variant: str) -> Path:
    """Return the folder of the exported models: one of ONNX and one of TensorFlow per seed."""
    return Path("exports") / dataset / variant


def predictions(dataset: str, variant: str) -> Path:
    """Return the predictions, a row for each test image."""
    return Path("predictions") / dataset / f"{variant}.csv"


def training(dataset: str, variant: str) -> Path:
    """Return the summary of a training: its size, and the validation split's loss and accuracy."""
    return RESULTS / dataset / variant / "training.json"


def curve(dataset: str, variant: str, split: str) -> Path:
    """Return the learning curve on the training or the validation split."""
    return RESULTS / dataset / variant / f"curve_{split}.csv"


def metrics(dataset: str, variant: str) -> Path:
    """Return the test-set metrics."""
    return RESULTS / dataset / variant / "metrics.json"


def mistakes(dataset: str, variant: str) -> Path:
    """Return the predictions of the misclassified test images."""
    return RESULTS / dataset / variant / "mistakes.csv"


def calibration(dataset: str, variant: str) -> Path:
    """Return the accuracy of the test images by the model's confidence."""
    return RESULTS / dataset / variant / "calibration.csv"


def export(dataset: str, variant: str) -> Path:
    """Return how far the exported models agree with the models."""
    return RESULTS / dataset / variant / "export.json"


def profile(dataset: str, variant: str) -> Path:
    """Return the speed of training and evaluation, and on which device."""
    return RESULTS / dataset / variant / "profile.json"


def memory(dataset: str, variant: str) -> Path:
    """Return the peak memory by the number of images in a batch."""
    return RESULTS / dataset / variant / "memory.csv"


def report(dataset: str) -> Path:
    """Return the report that compares the variants, for readers of the repository."""
    return Path("reports") / f"{dataset}.md"


def page(dataset: str) -> Path:
    """Return the same report as a page with pictures of the data."""
    return Path("reports") / f"{dataset}.html"
