"""Where each stage's results lie below the project's root; dvc.yaml names the same places."""

from pathlib import Path

PARAMS = Path("params.yaml")

ROLES = ("train_images", "train_labels", "test_images", "test_labels")
SPLITS = ("train", "validation", "test")


def raw(dataset: str) -> Path:
    """Return the folder of a data set's four IDX files, one for each name in `ROLES`."""
    return Path("data/raw") / dataset


def prepared(dataset: str, split: str) -> Path:
    """Return the folder of a split's ``images.npy`` and ``labels.npy``."""
    return Path("data/prepared") / dataset / split


def summary(dataset: str) -> Path:
    """Return the summary of a data set: shape, counts, pixel statistics."""
    return Path("data/summary") / f"{dataset}.json"


def models(dataset: str, variant: str) -> Path:
    """Return the folder of the trained models, one for each seed."""
    return Path("models") / dataset / variant


def model(dataset: str, variant: str, seed: int) -> Path:
    """Return the model trained with a seed."""
    return models(dataset, variant) / f"seed_{seed}.safetensors"


def checkpoints(dataset: str, variant: str) -> Path:
    """Return the folder of the checkpoints of a training that is not done; no output of DVC's."""
    return Path("checkpoints") / dataset / variant


def history(dataset: str, variant: str, split: str) -> Path:
    """Return the learning curve on the training or the validation split."""
    return Path("history") / dataset / variant / f"{split}.csv"


def training(dataset: str, variant: str) -> Path:
    """Return what a training took and on what it ran."""
    return Path("training") / dataset / f"{variant}.json"


def predictions(dataset: str, variant: str) -> Path:
    """Return the predictions, one row for each test image."""
    return Path("predictions") / dataset / f"{variant}.csv"


def mistakes(dataset: str, variant: str) -> Path:
    """Return the wrong predictions alone, which git keeps and the report reads."""
    return Path("mistakes") / dataset / f"{variant}.csv"


def metrics(dataset: str, variant: str) -> Path:
    """Return the test-set metrics."""
    return Path("metrics") / dataset / f"{variant}.json"


def reliability(dataset: str, variant: str) -> Path:
    """Return the accuracy of the test images by the confidence that the model had."""
    return Path("reliability") / dataset / f"{variant}.csv"


def footprint(dataset: str, variant: str) -> Path:
    """Return the memory that a variant takes, by how many images it is given at once."""
    return Path("footprint") / dataset / f"{variant}.csv"


def report(dataset: str) -> Path:
    """Return the report that sets the variants side by side, for readers of the repository."""
    return Path("reports") / f"{dataset}.md"


def page(dataset: str) -> Path:
    """Return the same report as a page, with pictures of the data."""
    return Path("reports") / f"{dataset}.html"
