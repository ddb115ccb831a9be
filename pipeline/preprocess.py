"""Turn raw IDX files into arrays that can be memory-mapped: training, validation and test split."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from sklearn.model_selection import train_test_split

from pipeline import idx, paths
from pipeline.data import Classes, Split, save_split
from pipeline.errors import DataError, run_stage
from pipeline.files import sha256, write_json
from pipeline.params import Params, Section

BLOCK_IMAGES = 1024


class DatasetPreprocess(Section):
    """How one data set is prepared."""

    validation_size: Annotated[int, Field(ge=1)]


class Preprocess(Section):
    """How every data set is prepared."""

    seed: Annotated[int, Field(ge=0)]


def read_pair(folder: Path, part: str, classes: int) -> Split:
    """Read images and labels that belong together.

    Parameters
    ----------
    folder : Path
        The raw files, named by role.
    part : {"train", "test"}
        Which two of the four.
    classes : int
        Labels go from 0 to `classes` - 1.

    Returns
    -------
    Split
        Images of shape (n, height, width, 1) and labels of shape (n,).

    Raises
    ------
    DataError
        If a file is not strict IDX, the counts differ, or a label is out of range.
    """
    images_path, labels_path = folder / f"{part}_images", folder / f"{part}_labels"
    images = idx.read(images_path, 3)[..., None]
    labels = idx.read(labels_path, 1)
    if len(images) != len(labels):
        raise DataError(
            f"{folder}: {len(images):,} {part} images, but {len(labels):,} {part} labels; "
            "both files must come from the same data set"
        )
    if labels.max() >= classes:
        first = int(np.argmax(labels >= classes))
        raise DataError(
            f"{labels_path}: label {labels[first]} at index {first}, expected 0 to {classes - 1}; "
            "mend the file, or raise the data set's classes in params.yaml"
        )
    return Split(images, labels)


def split_validation(
    labels: NDArray[np.uint8], size: int, seed: int
) -> tuple[NDArray[np.int64], ...]:
    """Choose a stratified validation split from a training set.

    Parameters
    ----------
    labels : array of uint8, shape (n,)
    size : int
        How many images validate; the rest train.
    seed : int

    Returns
    -------
    train, validation : arrays of int64
        Indices in ascending order; together each index once.

    Raises
    ------
    DataError
        If the set is too small, or a class too rare, for such a split.
    """
    try:
        train, validation = train_test_split(
            np.arange(len(labels)), test_size=size, random_state=seed, stratify=labels
        )
    except ValueError as error:
        raise DataError(
            f"{size:,} of {len(labels):,} training images cannot be a stratified validation "
            f"split: {error}; change the data set's validation_size"
        ) from error
    return np.sort(train), np.sort(validation)


def summarise(splits: Mapping[str, Split], classes: int) -> dict[str, Any]:
    """Return shape and counts of the splits, and pixel statistics of the training split.

    Pixels are in the units of the file, 0…255. Sums are exact (int64), so that the result does
    not depend on their order.
    """
    images = splits["train"].images
    # 256 counts hold all that mean and deviation need; in blocks, since bincount widens its input.
    counts = np.zeros(256, np.int64)
    for start in range(0, len(images), BLOCK_IMAGES):
        block = images[start : start + BLOCK_IMAGES]
        counts += np.bincount(block.reshape(-1), minlength=256)
    values = np.arange(256)
    mean = counts @ values / images.size
    deviation = np.sqrt(counts @ (values - mean) ** 2 / images.size)
    return {
        "image_shape": list(images.shape[1:]),
        "classes": classes,
        "pixel_mean": round(float(mean), 4),
        "pixel_deviation": round(float(deviation), 4),
        "images": {name: len(split.labels) for name, split in splits.items()},
        "images_per_class": {
            name: np.bincount(split.labels, minlength=classes).tolist()
            for name, split in splits.items()
        },
    }


def prepare(folder: Path, classes: int, validation_size: int, seed: int) -> dict[str, Split]:
    """Read a data set's raw files and split them.

    Returns
    -------
    dict
        A `Split` for each of `paths.SPLITS`.

    Raises
    ------
    DataError
        If a raw file is not what it should be.
    """
    known = read_pair(folder, "train", classes)
    test = read_pair(folder, "test", classes)
    if known.images.shape[1:] != test.images.shape[1:]:
        raise DataError(
            f"{folder}: training images of shape {known.images.shape[1:]}, but test images of "
            f"shape {test.images.shape[1:]}; all four files must come from the same data set"
        )
    train, validation = split_validation(known.labels, validation_size, seed)
    return {
        "train": Split(known.images[train], known.labels[train]),
        "validation": Split(known.images[validation], known.labels[validation]),
        "test": test,
    }


def main(dataset: str) -> None:
    """Prepare the raw files of `dataset`."""
    params = Params()
    classes: int = params.get(f"datasets.{dataset}.classes", Classes)
    own: DatasetPreprocess = params.get(f"datasets.{dataset}.preprocess", DatasetPreprocess)
    common: Preprocess = params.get("preprocess", Preprocess)
    splits = prepare(paths.raw(dataset), classes, own.validation_size, common.seed)
    for name, split in splits.items():
        save_split(paths.prepared(dataset, name), split)
    hashes = {role: sha256(paths.raw(dataset) / role) for role in paths.ROLES}
    summary = summarise(splits, classes) | {"sha256": hashes}
    write_json(paths.summary(dataset), summary)
    print(f"{dataset}: {summary['images']}, images of {summary['image_shape']}")


if __name__ == "__main__":
    run_stage(main, "dataset")
