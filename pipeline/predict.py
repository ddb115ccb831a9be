"""Say what is on pictures of your own: ``python -m pipeline.predict FILE…``.

A FILE is a picture, drawn or photographed, light on dark or dark on light; a folder stands for the
pictures in it, and ``-`` for one on standard input. Each is prepared as the data set's own images
were. By default the most accurate variant on MNIST answers, or on the digits if none is trained.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.answers import models
from pipeline.answers.models import Guess, Model
from pipeline.answers.pictures import SUFFIXES, prepare, read_file, read_picture
from pipeline.answers.settings import Pictures
from pipeline.core.errors import ModelError, PictureError
from pipeline.core.files import whole_file
from pipeline.core.params import Params, nearest
from pipeline.core.progress import Progress
from pipeline.core.stage import run_command
from pipeline.network.chunks import Evaluate

STANDARD_INPUT = "-"
COLUMNS = (
    "file", "class", "confidence", "second", "second_confidence", "third", "third_confidence",
)  # fmt: skip


class UnreadableError(PictureError):
    """Some pictures could not be read; the others were answered."""


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.predict", description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    parser.add_argument("files", nargs="+", metavar="FILE", help="a picture, a folder, or -")
    parser.add_argument("--dataset", metavar="NAME", help="what the model was trained on")
    parser.add_argument("--variant", metavar="NAME", help="by default the most accurate one")
    parser.add_argument("--format", choices=("text", "csv", "json"), default="text")
    parser.add_argument(
        "--show", type=Path, metavar="FOLDER", help="write what the network sees, as PNG files"
    )
    return parser.parse_args(arguments)


def find_files(names: Sequence[str]) -> list[str]:
    """Return the pictures that are named, and those in folders that are, in order.

    Raises
    ------
    PictureError
        If a folder has none.
    """
    found: list[str] = []
    for name in names:
        path = Path(name)
        if name == STANDARD_INPUT or not path.is_dir():
            found.append(name)
            continue
        inside = sorted(each for each in path.rglob("*") if each.suffix.lower() in SUFFIXES)
        if not inside:
            raise PictureError(f"{name}: has no picture in it")
        found += map(str, inside)
    return found


def open_picture(name: str) -> Image.Image:
    """Return the picture in a file, or on standard input."""
    if name == STANDARD_INPUT:
        return read_picture(sys.stdin.buffer.read(), "standard input")
    return read_file(Path(name))


def answer(
    names: Sequence[str], model: Model, settings: Pictures | None, show: Path | None
) -> Iterator[tuple[str, list[Guess] | PictureError]]:
    """Yield each picture's name with the model's best guesses, or with why it cannot be read.

    Pictures are read and answered in chunks that the model's memory budget holds.
    """
    waiting = iter(names)
    numbers = count()
    while some := list(islice(waiting, model.chunk_size)):
        images: dict[str, NDArray[np.uint8]] = {}
        failed: dict[str, PictureError] = {}
        for name in some:
            try:
                images[name] = prepare(open_picture(name), model.shape, settings, name)
            except PictureError as error:
                failed[name] = error
        stacked = np.stack([*images.values()]) if images else np.zeros((0, *model.shape), np.uint8)
        probabilities = dict(zip(images, model.probabilities(stacked), strict=True))
        for name, number in zip(some, numbers, strict=False):
            if name in failed:
                yield name, failed[name]
                continue
            if show is not None:
                save_image(show / f"{number:04}_{Path(name).stem}.png", images[name])
            yield name, model.best(probabilities[name])


def save_image(path: Path, image: NDArray[np.uint8]) -> None:
    """Write an image (height, width, 1 or 3) as a PNG file."""
    with whole_file(path) as file:
        Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image).save(file, "PNG")


def as_text(name: str, guesses: Sequence[Guess]) -> str:
    """Return an answer as a line of text."""
    first, *others = guesses
    rest = ", ".join(f"{each.name} {each.confidence:.1%}" for each in others)
    return f"{name}: {first.name}  {first.confidence:.1%}  (then {rest})"


def as_row(name: str, guesses: Sequence[Guess]) -> dict[str, Any]:
    """Return an answer as a row under `COLUMNS`."""
    cells = [name, *(cell for each in guesses for cell in (each.name, round(each.confidence, 6)))]
    return dict(zip(COLUMNS, cells, strict=False))


def as_json(name: str, guesses: Sequence[Guess]) -> dict[str, Any]:
    """Return an answer for JSON."""
    return {
        "file": name,
        "guesses": [{"class": each.name, "confidence": each.confidence} for each in guesses],
    }


def main(arguments: argparse.Namespace) -> None:
    """Print an answer for each picture."""
    params = Params()
    dataset = models.choose_dataset(params, arguments.dataset)
    variants = models.trained_variants(dataset)
    variant = arguments.variant or variants[0]
    if variant not in variants:
        raise ModelError(f"{dataset}: has no trained {variant!r}; {nearest(variant, variants)}")
    names = find_files(arguments.files)
    model = Model(dataset, variant, params.get("evaluate", Evaluate))
    settings = models.pictures_of(params, dataset)
    failed = 0
    writer = csv.DictWriter(sys.stdout, COLUMNS, lineterminator="\n")
    if arguments.format == "csv":
        writer.writeheader()
    entries = []
    with Progress(f"predict with {dataset}/{variant}", len(names), "pictures",
                  rate_unit="pictures") as progress:  # fmt: skip
        for name, guesses in answer(names, model, settings, arguments.show):
            progress.advance(1)
            if isinstance(guesses, PictureError):
                print(f"warning: {guesses}", file=sys.stderr)
                failed += 1
            elif arguments.format == "csv":
                writer.writerow(as_row(name, guesses))
            elif arguments.format == "json":
                entries.append(as_json(name, guesses))
            else:
                print(as_text(name, guesses))
    if arguments.format == "json":
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    if failed:
        raise UnreadableError(f"{failed} of {len(names)} pictures could not be read; see above")


if __name__ == "__main__":
    run_command(partial(main, parse_arguments()), "pipeline.predict")
