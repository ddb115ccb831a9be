"""Make a data set's IDX files from an ``.npz`` file, CSV files, or folders of pictures.

``python -m pipeline.convert SOURCE TARGET`` writes the four files into the folder TARGET, and
prints the row for params.yaml, with their hashes. SOURCE is

- an ``.npz`` file with ``x_train``, ``y_train``, ``x_test`` and ``y_test``, or with
  ``train_images``, ``train_labels``, ``test_images`` and ``test_labels``,
- two CSV files, ``TRAIN.csv,TEST.csv``, with a column ``label`` and a column for each pixel, or
- a folder with the folders ``train`` and ``test``, in which a folder for each class has its
  pictures; with ``--size`` they are resized.
"""

import argparse
import io
import sys
import zipfile
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.answers.pictures import SUFFIXES, prepare, read_file
from pipeline.core import paths
from pipeline.core.errors import DataError, one_line
from pipeline.core.files import sha256
from pipeline.core.params import NAME, nearest
from pipeline.core.stage import run_command
from pipeline.datasets import idx
from pipeline.datasets.raw import PIXEL_MAX
from pipeline.datasets.splits import MOST_CLASSES

ARRAYS = {
    "train_images": ("x_train", "train_images"),
    "train_labels": ("y_train", "train_labels"),
    "test_images": ("x_test", "test_images"),
    "test_labels": ("y_test", "test_labels"),
}
VALIDATION_SHARE = 12  # one of so many training images


class Converted(NamedTuple):
    """The arrays of a data set by role, as uint8, and the names of its classes."""

    arrays: dict[str, NDArray[np.uint8]]
    classes: list[str]


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.convert", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("source", metavar="SOURCE")
    parser.add_argument("target", type=Path, metavar="TARGET", help="a folder for the four files")
    parser.add_argument("--name", help="of the data set (default: TARGET's)")
    parser.add_argument(
        "--size", type=_positive, metavar="PIXELS", help="height and width of pictures from folders"
    )
    return parser.parse_args(arguments)


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise ValueError
    return number


def from_npz(path: Path) -> Converted:
    """Return the data set in an ``.npz`` file; a DataError if it is not one."""
    arrays = {}
    try:
        with np.load(path, allow_pickle=False) as file:
            for role, names in ARRAYS.items():
                found = [name for name in names if name in file]
                if not found:
                    raise DataError(
                        f"{path}: has no {names[0]} or {names[1]}; it has {', '.join(file)}"
                    )
                arrays[role] = file[found[0]]
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise DataError(f"{path}: cannot be read as .npz ({one_line(error)})") from error
    return checked(str(path), arrays)


def from_csv(train: Path, test: Path) -> Converted:
    """Return the data set in two CSV files with a column ``label`` and square images."""
    arrays: dict[str, NDArray[Any]] = {}
    for part, path in (("train", train), ("test", test)):
        try:
            table = pd.read_csv(path)
        except (OSError, ValueError) as error:
            raise DataError(f"{path}: cannot be read as CSV ({one_line(error)})") from error
        if "label" not in table:
            hint = nearest("label", map(str, table.columns))
            raise DataError(f"{path}: has no column 'label'; {hint}")
        pixels = table.drop(columns="label")
        side = round(len(pixels.columns) ** 0.5)
        if side**2 != len(pixels.columns):
            raise DataError(
                f"{path}: {len(pixels.columns)} columns beside the label are no square image; "
                "leave out what is no pixel"
            )
        arrays[f"{part}_images"] = pixels.to_numpy().reshape(-1, side, side)
        arrays[f"{part}_labels"] = table["label"].to_numpy()
    return checked(f"{train}, {test}", arrays)


def from_folders(root: Path, size: int | None) -> Converted:
    """Return the data set in the folders ``train`` and ``test``, each with a folder per class."""
    arrays = {}
    classes: list[str] = []
    shape: tuple[int, ...] | None = None if size is None else (size, size, 0)
    for part in ("train", "test"):
        folder = root / part
        names = (
            sorted(each.name for each in folder.iterdir() if each.is_dir())
            if folder.is_dir()
            else []
        )
        if not names:
            raise DataError(f"{folder}: expected a folder for each class")
        classes = classes or names
        if unknown := sorted(set(names) - set(classes)):
            raise DataError(f"{folder}: has the class {unknown[0]!r}, which {root}/train lacks")
        images, labels = [], []
        for label, name in enumerate(classes):
            for file in sorted((folder / name).glob("*")):
                if file.suffix.lower() not in SUFFIXES:
                    continue
                picture = read_file(file)
                if shape is None or shape[2] == 0:
                    channels = 1 if picture.mode in ("L", "1", "I", "I;16") else 3
                    shape = (*(shape or (picture.height, picture.width))[:2], channels)
                if size is None and (picture.height, picture.width) != shape[:2]:
                    raise DataError(
                        f"{file}: has {picture.width} × {picture.height} pixels, the others "
                        f"{shape[1]} × {shape[0]}; give them one --size"
                    )
                images.append(prepare(picture, shape, None, str(file)))
                labels.append(label)
        if not images:
            raise DataError(f"{folder}: has no picture in its folders")
        stacked = np.stack(images)
        arrays[f"{part}_images"] = stacked[..., 0] if stacked.shape[-1] == 1 else stacked
        arrays[f"{part}_labels"] = np.array(labels)
    return checked(str(root), arrays, classes)


def checked(
    source: str, arrays: Mapping[str, NDArray[Any]], classes: Sequence[str] = ()
) -> Converted:
    """Return arrays as bytes, and the names of the classes.

    Labels that do not run from 0 on, or are text, become numbers in their order, with their own
    names.

    Raises
    ------
    DataError
        If the arrays do not match, or hold what is not a pixel or a label.
    """
    for part in ("train", "test"):
        images, labels = arrays[f"{part}_images"], arrays[f"{part}_labels"]
        if images.ndim not in (3, 4) or (images.ndim == 4 and images.shape[3] not in (1, 3)):
            raise DataError(
                f"{source}: {part} images of shape {images.shape}, expected (n, height, width) or "
                "(n, height, width, 3)"
            )
        if labels.reshape(-1).shape != images.shape[:1] or not labels.size:
            raise DataError(
                f"{source}: {len(images):,} {part} images and {labels.size:,} labels; each image "
                "needs one"
            )
        if images.shape[1:] != arrays["train_images"].shape[1:]:
            raise DataError(
                f"{source}: test images of shape {images.shape[1:]}, and training images of shape "
                f"{arrays['train_images'].shape[1:]}; give them the same one"
            )
        if images.dtype.kind not in "ui":
            raise DataError(
                f"{source}: {part} images are {images.dtype}, expected integers of 0 to 255; scale "
                "them first"
            )
        if images.min() < 0 or images.max() > PIXEL_MAX:
            raise DataError(
                f"{source}: {part} images are {images.dtype} of {images.min()} to {images.max()}, "
                "expected integers of 0 to 255; scale them first"
            )
    arrays = dict(arrays) | _as_one_kind(source, arrays)
    known = np.unique(arrays["train_labels"])
    names = list(classes) or [str(each) for each in known]
    if not classes and known.dtype.kind in "ui" and known[0] == 0 and known[-1] < MOST_CLASSES:
        known = np.arange(max(int(known[-1]) + 1, 2))
        names = [str(each) for each in known]
    elif classes:
        known = np.arange(len(classes))
    if not 2 <= len(names) <= MOST_CLASSES:
        raise DataError(f"{source}: has {len(names)} classes, expected 2 to {MOST_CLASSES}")
    made: dict[str, NDArray[np.uint8]] = {}
    for role, array in arrays.items():
        if role.endswith("images"):
            flat = array[..., 0] if array.ndim == 4 and array.shape[3] == 1 else array
            made[role] = flat.astype(np.uint8)
            continue
        labels = array.reshape(-1)
        places = np.searchsorted(known, labels).clip(0, len(known) - 1)
        if (known[places] != labels).any():
            first = labels[int(np.argmax(known[places] != labels))].item()
            raise DataError(f"{source}: the test label {first!r} is not in the training set")
        made[role] = places.astype(np.uint8)
    return Converted(made, names)


def _as_one_kind(source: str, arrays: Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Return the labels of both parts, all integers or all text; a DataError for others."""
    labels = {role: array for role, array in arrays.items() if role.endswith("labels")}
    for role, array in labels.items():
        if array.dtype.kind == "O" and pd.isna(array).any():
            raise DataError(f"{source}: {role.replace('_', ' ')}: one is missing; fill it in")
        if array.dtype.kind not in "uiUO":
            raise DataError(
                f"{source}: {role.replace('_', ' ')} are {array.dtype}, expected integers or text, "
                "and none missing"
            )
    if all(array.dtype.kind in "ui" for array in labels.values()):
        return labels
    return {role: array.astype(str) for role, array in labels.items()}


def make_row(name: str, target: Path, converted: Converted) -> str:
    """Return the row of a data set for params.yaml, given the folder with its files."""
    arrays, classes = converted
    numbers = [str(label) for label in range(len(classes))]
    images = len(arrays["train_images"])
    preprocess: dict[str, Any] = {"validation_size": max(len(classes), images // VALIDATION_SHARE)}
    if arrays["train_images"].ndim == 4:
        preprocess["images"] = {"layout": "NHWC"}
    row = {
        "classes": len(classes) if classes == numbers else classes,
        "download": {
            "source": "mirrors",
            "mirrors": [str(target.resolve())],
            "files": {
                role: {"name": role, "sha256": sha256(target / role)} for role in paths.ROLES
            },
        },
        "preprocess": preprocess,
        "train": {"samples": None, "epochs": None},
        "report": {},
    }
    text = io.StringIO()
    yaml = YAML()
    yaml.dump({name: row}, text)
    return "".join(f"  {line}\n" for line in text.getvalue().splitlines())


def main(arguments: argparse.Namespace) -> None:
    """Write the files, and print the row."""
    source, target = arguments.source, arguments.target
    name = arguments.name or target.name.lower()
    if not NAME.fullmatch(name):
        raise DataError(
            f"{name!r} cannot name a data set; choose a --name of lower-case letters, digits and "
            "underscores"
        )
    if source.endswith(".npz"):
        converted = from_npz(Path(source))
    elif source.endswith(".csv") and source.count(",") == 1:
        converted = from_csv(*map(Path, source.split(",")))
    elif Path(source).is_dir():
        converted = from_folders(Path(source), arguments.size)
    else:
        raise DataError(f"{source}: expected an .npz file, TRAIN.csv,TEST.csv, or a folder")
    for role, array in converted.arrays.items():
        idx.write(target / role, array)
    print("# add to the datasets in params.yaml, and the name to run.datasets", file=sys.stderr)
    print(make_row(name, target, converted), end="")


if __name__ == "__main__":
    run_command(partial(main, parse_arguments()), "pipeline.convert")
