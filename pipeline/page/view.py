"""What a data set's report shows, for the Markdown template and the page's alike."""

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline.core.progress import duration
from pipeline.datasets.splits import SplitReader
from pipeline.page import charts
from pipeline.page.render import figure, picture
from pipeline.page.settings import DatasetReport
from pipeline.page.text import count, listed, mean_percent, percent, points
from pipeline.scores.comparison import BestMember, Pair, by_errors
from pipeline.scores.load import Result
from pipeline.scores.significance import Paired, images_interval, seeds_interval, verdict

NOTHING = "–"
CELL_PICTURES = 24  # of a cell of a confusion matrix, at most

RESULT_HEADER = (
    "variant", "accuracy", "95 % over images", "95 % over seeds", "errors", "loss",
    "calibration error", "parameters", "epochs",
)  # fmt: skip
MEMBER_HEADER = (
    "ensemble", "models", "its best", "errors of it", "difference, points", "95 % interval",
    "only together right", "only it is right", "p", "verdict",
)  # fmt: skip
SPEED_HEADER = (
    "variant", "training", "training images/s", "evaluation images/s", "evaluation memory",
    "in one batch",
)  # fmt: skip
PAIR_HEADER = (
    "variant", "compared with", "difference, points", "95 % interval", "only it is right",
    "only the other is right", "p", "verdict",
)  # fmt: skip
NOTES = (
    "Intervals are Wilson's over test images, and Student's over seeds where there are several. "
    "Loss is the mean cross-entropy in nats; the calibration error is the expected one over 15 "
    "bins; both before and after the logits are divided by a temperature that the validation "
    "images determine."
)
PART_NOTES = "Errors among some of the test images, the mean over seeds."
MEMBER_NOTES = "Image by image, by McNemar's exact test; which models, was fixed beforehand."
TRAINING_CAPTION = "Training loss, averaged over the steps before each point"
VALIDATION_CAPTION = "Accuracy on the validation split, after each epoch"
PAIR_NOTES = (
    "Image by image: McNemar's exact test, or Welch's over seeds where both variants have several. "
    "p-values are adjusted for the number of pairs by Holm's method; below 0.05 a difference is "
    "significant."
)


def make_view(
    dataset: str,
    results: Sequence[Result],
    pairs: Sequence[Pair],
    members: Sequence[BestMember],
    summary: dict[str, Any],
    classes: Sequence[str],
    known: DatasetReport,
    settings: dict[str, Any],
    test: SplitReader,
) -> dict[str, Any]:
    """Return the content of a report: text, tables and charts by name.

    Parameters
    ----------
    dataset : str
    results : sequence of Result
        One per variant and ensemble.
    pairs : sequence of Pair
    members : sequence of BestMember
        One per ensemble.
    summary : dict
        Of the data set, as preprocessing writes it.
    classes : sequence of str
        Their names.
    known : DatasetReport
    settings : dict
        The parameters that the results depend on.
    test : SplitReader
        The test images, for the pictures of mistakes.
    """
    results = by_errors(results)
    trained = [result for result in results if result.training]
    names = [result.variant for result in results]
    shown: int = settings["report"]["mistakes_shown"]
    budget_mb: float = settings["evaluate"]["memory_budget_mb"]
    matrices = {each.variant: each.predictions.confusion_matrix(len(classes)) for each in results}

    def joined(table: str, of: Sequence[Result] = trained) -> pd.DataFrame:
        tables: dict[str, pd.DataFrame] = {each.variant: getattr(each, table) for each in of}
        return pd.concat([each.assign(variant=name) for name, each in tables.items()])

    def curve(split: str, value: str, form: str, caption: str) -> dict[str, str]:
        table, title = joined(f"{split}_curve"), f"{split} {value}"
        last = table.groupby("variant").tail(1)
        ends = (f"{each['variant']} {each[value]:{form}}" for each in last.to_dict("records"))
        svg = charts.learning_curves(table, names, value, title)
        return figure(svg, caption, f"{title} over epochs", f"at the end {', '.join(ends)}")

    return {
        "dataset": dataset,
        "images": results[0].metrics["n"],
        "summary": summarise(results, pairs),
        "result_header": RESULT_HEADER,
        "result_rows": result_rows(results),
        "notes": f"{computed_in(results)} {NOTES}",
        "member_header": MEMBER_HEADER,
        "member_rows": member_rows(members),
        "member_notes": MEMBER_NOTES,
        "part_header": ("variant", *parts_of(known, results[0].metrics["n"])),
        "part_rows": part_rows(results, known),
        "part_notes": PART_NOTES,
        "speed_header": SPEED_HEADER,
        "speed_rows": speed_rows(trained),
        "speed_notes": measured_on(trained),
        "pair_header": PAIR_HEADER,
        "pair_rows": pair_rows(pairs),
        "pair_notes": PAIR_NOTES,
        "curves": [
            curve("training", "loss", ".4f", TRAINING_CAPTION),
            *(
                [curve("validation", "accuracy", ".2%", VALIDATION_CAPTION)]
                if summary["images"]["validation"]
                else []
            ),
        ],
        "calibration": figure(
            charts.calibration(joined("calibration", results), names),
            "Accuracy by confidence, in 15 bins; larger points hold more images; a perfectly "
            "calibrated model lies on the diagonal; faint lines are before the temperature",
            "accuracy against confidence",
            "; ".join(
                f"{each.variant}: expected calibration error {_scaled(each.metrics, 'ece')}"
                for each in results
            ),
        ),
        "memory": figure(
            charts.memory(joined("memory"), names, budget_mb),
            f"Memory by images in a batch; the dotted line is the budget of {budget_mb:g} MB",
            "memory against images in a batch",
        ),
        "classes": [*classes],
        "confusion": matrices,
        "heats": {name: _heats(matrix) for name, matrix in matrices.items()},
        "recall_rows": [
            (label, count(images), [_recall(matrix, label) for matrix in matrices.values()])
            for label, images in enumerate(summary["images_per_class"]["test"])
        ],
        "mistakes": {each.variant: _mistakes(each, shown, test, known) for each in results},
        "cells": {each.variant: _cells(each, test, known) for each in results},
        "flawless": [each.variant for each in results if each.predictions.mistakes.empty],
        "seeds": {each.variant: each.seeds for each in results},
        "origin": {
            "Data, SHA-256": "\n".join(f"{sha}  {role}" for role, sha in summary["sha256"].items()),
            "Parameters": _as_yaml(settings),
        },
        "percent": percent,
    }


def summarise(results: Sequence[Result], pairs: Sequence[Pair]) -> str:
    """Return the verdict in a sentence, and a warning for each variant that learnt nothing."""
    best = by_errors(results)[0]
    metrics = best.metrics
    sentence = (
        f"{best.variant} makes the fewest errors, {count(metrics['errors'])} of "
        f"{metrics['n']:,} ({percent(metrics['accuracy'])} accuracy"
        f"{f', mean of {best.seeds} seeds' if best.seeds > 1 else ''})"
    )
    others = {pair.second: pair.verdict for pair in pairs if pair.first == best.variant}
    worse = [name for name, verdict in others.items() if verdict == "worse"]
    similar = [name for name in others if name not in worse]
    if worse:
        sentence += f"; it is better than {listed(worse)}"
    if similar:
        sentence += f"; there is no evidence of a difference from {listed(similar)}"
    warnings = [
        f" Warning: {each.variant} is {each.metrics['warning']}."
        for each in results
        if "warning" in each.metrics
    ]
    return f"{sentence}.{''.join(warnings)}"


def result_rows(results: Sequence[Result]) -> list[list[str]]:
    """Return the results of each variant, under `RESULT_HEADER`."""
    return [
        [
            each.variant,
            mean_percent(each.metrics["accuracy"], each.metrics.get("accuracy_deviation"))
            + (f", {each.seeds} seeds" if each.seeds > 1 else ""),
            " – ".join(map(percent, images_interval(each.metrics))),
            " – ".join(map(percent, seeds_interval(each.metrics) or ())) or NOTHING,
            count(each.metrics["errors"]),
            _scaled(each.metrics, "nll"),
            _scaled(each.metrics, "ece"),
            f"{each.training['parameters']:,}" if each.training else NOTHING,
            f"{each.training['epochs']:.2f}" if each.training else NOTHING,
        ]
        for each in results
    ]


def _scaled(metrics: dict[str, Any], name: str) -> str:
    """Return a figure before and after the temperature; once if that changes nothing."""
    before, after = f"{metrics[name]:.4f}", f"{metrics[f'calibrated_{name}']:.4f}"
    return before if before == after else f"{before} → {after}"


def member_rows(members: Sequence[BestMember]) -> list[list[str]]:
    """Return each ensemble's comparison with its best member, under `MEMBER_HEADER`."""
    return [
        [
            each.ensemble,
            f"{each.models}",
            each.member,
            f"{each.errors}",
            *_difference(each.paired),
            f"{each.paired.difference.p:.2g}",
            verdict(each.paired.difference.value, each.paired.difference.p),
        ]
        for each in members
    ]


def parts_of(known: DatasetReport, images: int) -> dict[str, tuple[int, int, list[int]]]:
    """Return what is known of a test set by name: first image, one after the last, left out."""
    parts: dict[str, tuple[int, int, list[int]]] = {
        name: (first, stop, []) for name, (first, stop) in known.parts.items()
    }
    if known.label_errors:
        name = f"without {len(known.label_errors)} confirmed label errors"
        parts[name] = (0, images, known.label_errors)
    return parts


def part_rows(results: Sequence[Result], known: DatasetReport) -> list[list[str]]:
    """Return each variant's errors in parts of the test set: how many, and the accuracy."""
    parts = parts_of(known, results[0].metrics["n"])
    return [
        [each.variant, *(_errors_among(each, *part) for part in parts.values())]
        for each in results
        if parts
    ]


def _errors_among(result: Result, first: int, stop: int, left_out: list[int]) -> str:
    stop = min(stop, result.predictions.test_images)
    images = stop - first - sum(first <= index < stop for index in left_out)
    if images < 1:
        return NOTHING
    errors = result.predictions.errors_among(first, stop, left_out)
    return f"{count(round(errors, 3))} of {images:,} ({percent(1 - errors / images)})"


def speed_rows(results: Sequence[Result]) -> list[list[str]]:
    """Return the speed and memory of each variant, under `SPEED_HEADER`."""
    return [
        [
            each.variant,
            duration(each.training["samples"] / each.profile["training_images_per_second"]),
            f"{each.profile['training_images_per_second']:,.0f}",
            f"{each.profile['evaluation_images_per_second']:,.0f}",
            f"{each.profile['peak_memory_mb']:,.0f} MB in chunks of {each.profile['chunk_size']:,}",
            _one_batch(each),
        ]
        for each in results
    ]


def _one_batch(result: Result) -> str:
    """Return the memory of the whole test set in one batch; extrapolated if not measured."""
    images, last = result.metrics["n"], result.memory.iloc[-1]
    whole = last["peak_memory_mb"] * images / last["images"]
    if last["images"] == images:
        return f"{whole:,.0f} MB"
    return f"about {whole:,.0f} MB (extrapolated; not enough memory to measure)"


def pair_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    """Return the comparison of each pair, under `PAIR_HEADER`."""
    return [
        [
            pair.second,
            pair.first,
            *_difference(pair.paired),
            f"{pair.p:.2g}",
            pair.verdict,
        ]
        for pair in pairs
    ]


def _difference(paired: Paired) -> list[str]:
    difference = paired.difference
    return [
        points(difference.value),
        f"{points(difference.low)} … {points(difference.high)}",
        count(len(paired.fixed)),
        count(len(paired.broken)),
    ]


def computed_in(results: Sequence[Result]) -> str:
    """Return the precisions of training and evaluation, as a sentence."""
    trained = dict.fromkeys(each.training["precision"] for each in results if each.training)
    evaluated = dict.fromkeys(each.metrics["precision"] for each in results)
    return f"Trained in {listed([*trained])}, evaluated in {listed([*evaluated])}."


def measured_on(results: Sequence[Result]) -> str:
    """Return the device and versions that speed and memory were measured with."""
    devices = dict.fromkeys(
        f"the {each.profile['device']}, with "
        + ", ".join(f"{name} {version}" for name, version in each.profile["versions"].items())
        for each in results
    )
    return (
        f"Measured on {listed([*devices])}; the time of a training is its samples at that speed; "
        "memory is on top of the loaded model."
    )


def _heats(matrix: NDArray[np.int64]) -> list[list[float]]:
    """Return the colour intensity of each cell of a confusion matrix, 0…1."""
    wrong = matrix - np.diag(matrix.diagonal())
    shares = np.sqrt(wrong / max(1, wrong.max())) + np.diag((matrix.diagonal() > 0) * 0.5)
    return [[round(float(share), 3) for share in row] for row in shares]


def _recall(matrix: NDArray[np.int64], label: int) -> float | None:
    """Return the share of a class's images that are classified correctly; None if it has none."""
    images = matrix[label].sum()
    return float(matrix[label, label] / images) if images else None


def _mistakes(
    result: Result, shown: int, test: SplitReader, known: DatasetReport
) -> list[dict[str, Any]]:
    """Return the most confident mistakes, each with its picture."""
    return _pictured(result.predictions.confident_mistakes(shown), test, known)


def _cells(
    result: Result, test: SplitReader, known: DatasetReport
) -> dict[tuple[int, int], list[dict[str, Any]]]:
    """Return the pictures of each pair of label and prediction, the most confident first."""
    wrong = result.predictions.confident_mistakes(len(result.predictions.mistakes))
    cells = wrong.groupby(["label", "prediction"])
    return {
        (int(rows["label"].iloc[0]), int(rows["prediction"].iloc[0])): _pictured(
            rows.head(CELL_PICTURES), test, known
        )
        for _, rows in cells
    }


def _pictured(
    mistakes: pd.DataFrame, test: SplitReader, known: DatasetReport
) -> list[dict[str, Any]]:
    return [
        {str(name): value for name, value in row.items()}
        | {
            "confidence": percent(row["confidence"]),
            "label_error": row["index"] in (known.label_errors or ()),
            "picture": picture(test.read(row["index"], row["index"] + 1).images[0]),
        }
        for row in mistakes.to_dict("records")
    ]


def _as_yaml(settings: dict[str, Any]) -> str:
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None  # one line per layer
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(settings, text)
    return text.getvalue()
