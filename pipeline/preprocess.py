"""Check the raw IDX files, and split them into training, validation and test arrays."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, model_validator

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.files import sha256, write_json
from pipeline.core.params import Params, Section
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.raw import Images, Labels, Writers, open_part, read_writers
from pipeline.datasets.splits import Classes, Split, class_names, split_writer


class DatasetPreprocess(Section):
    """How one data set is stored and prepared.

    ``validation_size`` images of the training set are for validation; with 0, all are trained on.
    Where the ``writers`` of the training images are known, none of them is on both sides.
    """

    validation_size: NonNegativeInt
    writers: Writers | None = None
    images: Images = Images()
    labels: Labels = Labels()

    @model_validator(mode="after")
    def _writers_decide_on_something(self) -> "DatasetPreprocess":
        if self.writers is not None and not self.validation_size:
            raise ValueError("writers decide on the validation split, and validation_size is 0")
        return self


class Preprocess(Section):
    """How every data set is prepared."""

    seed: NonNegativeInt


def choose_validation(labels: NDArray[np.uint8], size: int, seed: int) -> NDArray[np.bool_]:
    """Return which images of a training set go into a stratified validation split.

    Parameters
    ----------
    labels : array of uint8, shape (n,)
    size : int
        The number of validation images.
    seed : int

    Returns
    -------
    array of bool, shape (n,)
        True for validation images. Each class has its share of them, to the nearest image.

    Raises
    ------
    DataError
        If a class would have no image on one side.
    """
    validates = np.zeros(len(labels), np.bool_)
    if not size:
        return validates
    counts = np.bincount(labels)
    if 1 in counts:
        raise DataError(
            f"class {int(np.argmax(counts == 1))} has one training image, expected at least two, "
            "one to train with and one to validate with; add images of it, or leave the class out"
        )
    shares = counts * size / len(labels)
    chosen = shares.astype(np.int64)
    # The images that rounding down leaves go to the classes with the largest remainders.
    chosen[np.argsort(chosen - shares, kind="stable")[: size - chosen.sum()]] += 1
    known = counts > 0
    if np.any(chosen[known] < 1) or np.any(chosen[known] >= counts[known]):
        raise DataError(
            f"{size:,} of {len(labels):,} training images cannot be a stratified validation "
            "split: each class needs an image in both splits; change the data set's "
            "validation_size"
        )
    random = np.random.Generator(np.random.PCG64(seed))
    for label, count in enumerate(chosen):
        validates[random.permutation(np.flatnonzero(labels == label))[:count]] = True
    return validates


def choose_writers(
    labels: NDArray[np.uint8], writers: NDArray[np.int64], size: int, seed: int
) -> NDArray[np.bool_]:
    """Return which images of a training set go into a validation split by writers of its own.

    Writers are taken in random order, each with all images, as long as they fit.

    Parameters
    ----------
    labels : array of uint8, shape (n,)
    writers : array of int64, shape (n,)
    size : int
        The largest number of validation images.
    seed : int

    Returns
    -------
    array of bool, shape (n,)
        True for validation images.

    Raises
    ------
    DataError
        If a class would have no image on one side.
    """
    _, number, images = np.unique(writers, return_inverse=True, return_counts=True)
    chosen = np.zeros(len(images), np.bool_)
    room = size
    for writer in np.random.Generator(np.random.PCG64(seed)).permutation(len(images)):
        if images[writer] <= room:
            chosen[writer] = True
            room -= images[writer]
    validates: NDArray[np.bool_] = chosen[number]
    for split in (labels[validates], labels[~validates]):
        if missing := sorted({*labels.tolist()} - {*split.tolist()}):
            raise DataError(
                f"{size:,} of {len(labels):,} training images by {len(images):,} writers cannot be "
                f"a validation split by writers of its own: class {missing[0]} would be on one "
                "side alone; change the data set's validation_size, or leave its writers out"
            )
    return validates


class Summary:
    """Counts of the splits, and pixel statistics of the training split.

    Pixel values are 0…255. Sums are exact (int64), so the result does not depend on their order.

    Parameters
    ----------
    classes : int
    """

    def __init__(self, classes: int) -> None:
        self.pixels = np.zeros(256, np.int64)  # the statistics need no more than these counts
        self.labels = {name: np.zeros(classes, np.int64) for name in paths.SPLITS}

    def add(self, name: str, piece: Split) -> None:
        """Add a piece of a split."""
        if name == "train":
            self.pixels += np.bincount(piece.images.reshape(-1), minlength=256)
        counts = self.labels[name]
        counts += np.bincount(piece.labels, minlength=len(counts))

    def figures(self, image_shape: Sequence[int]) -> dict[str, Any]:
        """Return shape, counts and statistics."""
        values = np.arange(256)
        mean = self.pixels @ values / self.pixels.sum()
        deviation = np.sqrt(self.pixels @ (values - mean) ** 2 / self.pixels.sum())
        return {
            "image_shape": list(image_shape),
            "classes": len(self.labels["train"]),
            "pixel_mean": round(float(mean), 4),
            "pixel_deviation": round(float(deviation), 4),
            "images": {name: int(counts.sum()) for name, counts in self.labels.items()},
            "images_per_class": {name: counts.tolist() for name, counts in self.labels.items()},
        }


def prepare(
    raw: Path, folders: Mapping[str, Path], classes: int, settings: DatasetPreprocess, seed: int
) -> dict[str, Any]:
    """Check the raw files, split them into `folders`, and return the figures of the `Summary`.

    They are read block by block, and all of `paths.SPLITS` are written or none.

    Raises
    ------
    DataError
        If a raw file is damaged, or does not match the others.
    """
    with ExitStack() as stack:
        train, test = (
            stack.enter_context(open_part(raw, part, classes, settings.images, settings.labels))
            for part in ("train", "test")
        )
        image_shape = train.images.shape[1:]
        if image_shape != test.images.shape[1:]:
            raise DataError(
                f"{raw}: training images of shape {image_shape}, but test images of "
                f"shape {test.images.shape[1:]}; all four files must come from the same data set"
            )
        if settings.writers is None:
            validates = choose_validation(train.labels, settings.validation_size, seed)
        else:
            writers = read_writers(raw / paths.WRITERS, train.labels, settings.writers)
            validates = choose_writers(train.labels, writers, settings.validation_size, seed)
        everything = np.ones(len(test.labels), np.bool_)
        sources = {
            "train": (train, ~validates),
            "validation": (train, validates),
            "test": (test, everything),
        }
        write = {
            name: stack.enter_context(split_writer(folders[name], int(chosen.sum()), image_shape))
            for name, (_, chosen) in sources.items()
        }
        summary = Summary(classes)
        for part in (train, test):
            start = 0
            for images in part.images.blocks():
                stop = start + len(images)
                for name, (source, chosen) in sources.items():
                    if source is part:
                        mine = chosen[start:stop]
                        piece = Split(images[mine], part.labels[start:stop][mine])
                        write[name](piece)
                        summary.add(name, piece)
                start = stop
    return summary.figures(image_shape)


def main(dataset: str) -> None:
    """Prepare the raw files of `dataset`."""
    params = Params()
    classes = len(class_names(params.get(f"datasets.{dataset}.classes", Classes)))
    own: DatasetPreprocess = params.get(f"datasets.{dataset}.preprocess", DatasetPreprocess)
    common: Preprocess = params.get("preprocess", Preprocess)
    folders = {name: paths.prepared(dataset, name) for name in paths.SPLITS}
    summary = prepare(paths.raw(dataset), folders, classes, own, common.seed)
    roles = [*paths.ROLES, *([paths.WRITERS] if own.writers else [])]
    hashes = {role: sha256(paths.raw(dataset) / role) for role in roles}
    write_json(paths.summary(dataset), summary | {"sha256": hashes})
    print(f"{dataset}: {summary['images']}, images of {summary['image_shape']}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
