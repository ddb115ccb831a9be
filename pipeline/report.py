"""Set the variants of a data set side by side, in Markdown."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline import paths
from pipeline.data import Classes
from pipeline.errors import DataError, run_stage
from pipeline.files import write_text
from pipeline.params import Params, Section
from pipeline.progress import duration
from pipeline.variants import PositiveInt


class Report(Section):
    """What the report shows."""

    surest_mistakes: PositiveInt


@dataclass(frozen=True)
class Result:
    """What a variant's stages left behind.

    ``predictions`` has a row for each test image: index, label, prediction, confidence.
    """

    variant: str
    training: dict[str, Any]
    metrics: dict[str, Any]
    predictions: pd.DataFrame


def read_result(dataset: str, variant: str) -> Result:
    """Read a variant's results.

    Raises
    ------
    DataError
        If one is missing or damaged.
    """
    return Result(
        variant,
        _read_json(paths.training(dataset, variant)),
        _read_json(paths.metrics(dataset, variant)),
        _read_predictions(paths.predictions(dataset, variant)),
    )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot be read ({error}); train and evaluate again") from error
    return content


def _read_predictions(path: Path) -> pd.DataFrame:
    types = {"index": "int64", "label": "int64", "prediction": "int64", "confidence": "float64"}
    try:
        table = pd.read_csv(path, dtype=types)
        return table[list(types)]
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: cannot be read ({error}); evaluate again") from error


def write_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table, all columns but the first one to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(str(cell) for cell in line) + " |" for line in lines]


def compare(results: Sequence[Result]) -> list[str]:
    """Return the table of the variants, the most accurate one first."""
    header = [
        "variant",
        "accuracy",
        "95 % interval",
        "errors",
        "loss",
        "calibration error",
        "parameters",
        "training",
        "training images/s",
        "evaluation images/s",
        "evaluation memory",
    ]
    rows = []
    for result in sorted(results, key=lambda each: each.metrics["errors"]):
        metrics, training = result.metrics, result.training
        evaluation = metrics["evaluation"]
        rows.append(
            [
                result.variant,
                f"{metrics['accuracy']:.2%}",
                f"{metrics['accuracy_low']:.2%} – {metrics['accuracy_high']:.2%}",
                f"{metrics['errors']:,}",
                f"{metrics['nll']:.4f}",
                f"{metrics['ece']:.4f}",
                f"{training['parameters']:,}",
                f"{training['epochs']:.2f} epochs, {duration(training['seconds'])}",
                f"{training['images_per_second']:,.0f}",
                f"{evaluation['images_per_second']:,.0f}",
                f"{evaluation['peak_memory_mb']:.0f} MB in chunks of {evaluation['chunk_size']}",
            ]
        )
    return write_table(header, rows)


def confusion_matrix(predictions: pd.DataFrame, classes: int) -> list[str]:
    """Return the table of labels (rows) against predictions (columns)."""
    counts = pd.crosstab(predictions["label"], predictions["prediction"])
    counts = counts.reindex(index=range(classes), columns=range(classes), fill_value=0)
    rows = [
        [f"**{label}**", *row] for label, row in zip(range(classes), counts.values, strict=True)
    ]
    return write_table(["label", *map(str, range(classes))], rows)


def surest_mistakes(predictions: pd.DataFrame, count: int) -> list[str]:
    """Return the table of the wrong predictions with the highest confidence."""
    wrong = predictions[predictions["label"] != predictions["prediction"]]
    wrong = wrong.sort_values(["confidence", "index"], ascending=[False, True]).head(count)
    rows = [
        [row.index, row.label, row.prediction, f"{row.confidence:.2%}"]
        for row in wrong.itertuples(index=False)
    ]
    return write_table(["test image", "label", "prediction", "confidence"], rows)


def write_report(dataset: str, results: Sequence[Result], classes: int, mistakes: int) -> str:
    """Return the report as Markdown.

    Parameters
    ----------
    dataset : str
    results : sequence of Result
        One for each variant.
    classes : int
    mistakes : int
        How many of the surest mistakes to show of each variant.
    """
    images = results[0].metrics["n"]
    lines = [f"# {dataset}: {images:,} test images", "", *compare(results), ""]
    hardware = sorted({f"{each.training['precision']} on the {each.training['device']}"
                       for each in results})  # fmt: skip
    lines += [
        f"Trained in {'; '.join(hardware)}. Intervals are Wilson's; the loss is the mean "
        "cross-entropy in nats; the calibration error is expected over 15 bins; memory is over "
        "the loaded model.",
        "",
    ]
    for result in results:
        lines += [f"## {result.variant}", "", "Labels down, predictions across:", ""]
        lines += [*confusion_matrix(result.predictions, classes), ""]
        if result.metrics["errors"]:
            lines += ["The surest mistakes:", ""]
            lines += [*surest_mistakes(result.predictions, mistakes), ""]
        else:
            lines += ["No mistake.", ""]
    return "\n".join(lines)


def main(dataset: str) -> None:
    """Write the report of `dataset`."""
    params = Params()
    settings: Report = params.get("report", Report)
    variants: list[str] = params.get("run.variants", list[str])
    classes: int = params.get(f"datasets.{dataset}.classes", Classes)
    results = [read_result(dataset, variant) for variant in variants]
    report = write_report(dataset, results, classes, settings.surest_mistakes)
    write_text(paths.report(dataset), report)
    print(f"{dataset}: {paths.report(dataset)}")
    print("\n".join(compare(results)))


if __name__ == "__main__":
    run_stage(main, "dataset")
