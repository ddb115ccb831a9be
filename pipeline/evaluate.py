"""Evaluate a trained variant on the whole test set, in chunks that fit a memory budget."""

from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from pipeline.core import paths
from pipeline.core.errors import EvaluationError
from pipeline.core.files import whole_file, write_json, write_text
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import SplitReader
from pipeline.network import storage
from pipeline.network.build import LoadedModel
from pipeline.network.chunks import Evaluate
from pipeline.network.device import find_device
from pipeline.network.inference import ChunkedForward, choose_chunk_size, memory_per_image
from pipeline.scores.metrics import Totals, over_seeds

COLUMNS = ("seed", "index", "label", "prediction", "confidence")


def evaluate(
    loaded: LoadedModel,
    seed: int,
    reader: SplitReader,
    chunk_size: int,
    predictions: IO[str],
    mistakes: IO[str],
    progress: Progress,
) -> Totals:
    """Evaluate a model, trained with `seed`, on a whole test set in chunks of `chunk_size` images.

    Each image has a CSV row under `COLUMNS` in `predictions`, each misclassified one in `mistakes`
    too; each advances `progress` by one.
    """
    totals = Totals(loaded.description.classes)
    forward = ChunkedForward(loaded.network, chunk_size, memory_per_image(loaded))
    forward.warm_up()
    for start, labels, logits in forward.run(reader):
        predicted, confidences = totals.add(logits, labels)
        indices = range(start, start + len(labels))
        columns = (array.tolist() for array in (labels, predicted, confidences))
        for index, label, prediction, confidence in zip(indices, *columns, strict=True):
            row = f"{seed},{index},{label},{prediction},{confidence:.6f}\n"
            predictions.write(row)
            if label != prediction:
                mistakes.write(row)
        progress.advance(len(labels), f"{totals.errors} errors")
    return totals


def summarise(totals: Mapping[int, Totals], precision: str) -> dict[str, Any]:
    """Return the metrics over seeds, and a warning if a seed is no better than chance."""
    by_chance = ", ".join(str(seed) for seed, each in totals.items() if each.is_chance)
    warning = {"warning": f"no better than chance with seed {by_chance}"} if by_chance else {}
    metrics = over_seeds({seed: each.metrics() for seed, each in totals.items()})
    return {**warning, "precision": precision, **metrics}


def calibration(totals: Mapping[int, Totals]) -> str:
    """Return the calibration curves as CSV: a row for each seed and bin of confidence."""
    rows = [
        f"{seed},{confidence:.6f},{accuracy:.6f},{images}\n"
        for seed, each in totals.items()
        for confidence, accuracy, images in each.calibration()
    ]
    return "".join(["seed,confidence,accuracy,images\n", *rows])


def load_for(reader: SplitReader, path: Path, precision: str) -> LoadedModel:
    """Load a model; an EvaluationError if it takes images of another shape than the test set's."""
    loaded = storage.load(path, precision)
    expected = tuple(loaded.description.image_shape)
    if expected != reader.image_shape:
        raise EvaluationError(
            f"{path}: expects images of {expected}, the test images are {reader.image_shape}; "
            "train it again on this data set"
        )
    return loaded


def main(dataset: str, variant: str) -> None:
    """Evaluate `variant`, trained on `dataset`; write predictions, mistakes and metrics."""
    params = Params()
    settings: Evaluate = params.get("evaluate", Evaluate)
    seeds = storage.trained_seeds(paths.models(dataset, variant))
    precision = find_device().precision(settings.precision)
    totals = {}
    with (
        SplitReader(paths.prepared(dataset, "test")) as reader,
        Progress(
            f"evaluate {dataset}/{variant}", len(reader) * len(seeds), "images", rate_unit="images"
        ) as progress,
        whole_file(paths.predictions(dataset, variant), "w") as predictions,
        whole_file(paths.mistakes(dataset, variant), "w") as mistakes,
    ):
        for table in (predictions, mistakes):
            table.write(",".join(COLUMNS) + "\n")
        for seed in seeds:
            loaded = load_for(reader, paths.model(dataset, variant, seed), precision)
            size = choose_chunk_size(loaded, settings, len(reader))
            totals[seed] = evaluate(loaded, seed, reader, size, predictions, mistakes, progress)
    metrics = summarise(totals, precision)
    write_text(paths.calibration(dataset, variant), calibration(totals))
    write_json(paths.metrics(dataset, variant), metrics)
    print(f"{dataset}/{variant}: {metrics}")
    if "warning" in metrics:
        print(f"warning: {dataset}/{variant}: {metrics['warning']}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
