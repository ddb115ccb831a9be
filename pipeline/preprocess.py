"""Check the raw IDX files, and split them into training, validation and test arrays."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import NonNegativeInt, PositiveInt

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.files import sha256, write_json
from pipeline.core.params import Params, Section
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets import idx
from pipeline.datasets.splits import Classes, Split, split_writer


class DatasetPreprocess(Section):
    """How one data set is prepared."""

    validation_size: PositiveInt


class Preprocess(Section):
    """How every data set is prepared."""

    seed: NonNegativeInt


class RawPart(NamedTuple):
    """One half of the raw files: images to read block by block, and all labels, uint8 (n,)."""

    images: idx.IdxFile
    labels: NDArray[np.uint8]


@contextmanager
def open_part(folder: Path, part: str, classes: int) -> Iterator[RawPart]:
    """Open the images and labels of a `part`, ``"train"`` or ``"test"``, and check that they match.

    Raises
    ------
    DataError
        If a file is not strict IDX, the counts differ, or a label is out of range.
    """
    images_path, labels_path = folder / f"{part}_images", folder / f"{part}_labels"
    with idx.IdxFile(images_path, 3) as images:
        labels = idx.read(labels_path, 1)
        if images.shape[0] != len(labels):
            raise DataError(
                f"{folder}: {images.shape[0]:,} {part} images, but {len(labels):,} {part} labels; "
                "both files must come from the same data set"
            )
        if labels.max() >= classes:
            first = int(np.argmax(labels >= classes))
            raise DataError(
                f"{labels_path}: label {labels[first]} at index {first}, expected 0 to "
                f"{classes - 1}; fix the file, or raise the data set's classes in params.yaml"
            )
        yield RawPart(images, labels)


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
    validates = np.zeros(len(labels), np.bool_)
    for label, count in enumerate(chosen):
        validates[random.permutation(np.flatnonzero(labels == label))[:count]] = True
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
    raw: Path, folders: Mapping[str, Path], classes: int, validation_size: int, seed: int
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
            stack.enter_context(open_part(raw, part, classes)) for part in ("train", "test")
        )
        if train.images.shape[1:] != test.images.shape[1:]:
            raise DataError(
                f"{raw}: training images of shape {train.images.shape[1:]}, but test images of "
                f"shape {test.images.shape[1:]}; all four files must come from the same data set"
            )
        image_shape = (*train.images.shape[1:], 1)
        validates = choose_validation(train.labels, validation_size, seed)
        everything = np.ones(len(test.labels), np.bool_)
        sources = {
            "train": (train, ~validates),
            "validation": (train, validates),
            "test": (test, everything),
        }
        writers = {
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
                        piece = Split(images[mine][..., None], part.labels[start:stop][mine])
                        writers[name](piece)
                        summary.add(name, piece)
                start = stop
    return summary.figures(image_shape)


def main(dataset: str) -> None:
    """Prepare the raw files of `dataset`."""
    params = Params()
    classes: int = params.get(f"datasets.{dataset}.classes", Classes)
    own: DatasetPreprocess = params.get(f"datasets.{dataset}.preprocess", DatasetPreprocess)
    common: Preprocess = params.get("preprocess", Preprocess)
    folders = {name: paths.prepared(dataset, name) for name in paths.SPLITS}
    summary = prepare(paths.raw(dataset), folders, classes, own.validation_size, common.seed)
    hashes = {role: sha256(paths.raw(dataset) / role) for role in paths.ROLES}
    write_json(paths.summary(dataset), summary | {"sha256": hashes})
    print(f"{dataset}: {summary['images']}, images of {summary['image_shape']}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
