"""Set the variants of a data set side by side: in Markdown for git, and as a page with pictures."""

import io
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from ruamel.yaml import YAML

from pipeline import charts, paths, render
from pipeline.data import Classes, SplitReader
from pipeline.files import write_text
from pipeline.params import Params, Section
from pipeline.progress import duration
from pipeline.render import count, percent, points
from pipeline.results import Result, read_json, read_result
from pipeline.stage import require_unchanged, run_stage
from pipeline.statistics import Paired, compare_predictions, holm, verdict
from pipeline.variants import PositiveInt

VARIANT_HEADER = (
    "variant", "accuracy", "95 % interval", "errors", "loss", "calibration error", "parameters",
    "training", "training images/s", "evaluation images/s", "evaluation memory",
)  # fmt: skip
PAIR_HEADER = (
    "variant", "against", "difference, points", "95 % interval", "only it is right",
    "only the other is right", "p", "verdict",
)  # fmt: skip
TRACKED = ("pipeline", "params.yaml", "dvc.yaml")  # what makes the results


class Report(Section):
    """What the report shows."""

    surest_mistakes: PositiveInt


@dataclass(frozen=True)
class Pair:
    """Two variants on the same test images, the one with fewer errors first.

    ``paired`` holds the second one against the first; ``p`` is adjusted for the number of pairs.
    """

    first: str
    second: str
    paired: Paired
    p: float

    @property
    def verdict(self) -> str:
        """What the second one is: ``better``, ``worse`` or ``no evidence of a difference``."""
        return verdict(self.paired.difference.value, self.p)


def by_errors(results: Sequence[Result]) -> list[Result]:
    """Return the results, the most accurate one first."""
    return sorted(results, key=lambda each: each.metrics["errors"])


def compare_pairs(results: Sequence[Result]) -> list[Pair]:
    """Compare each variant with each other one."""
    couples = list(combinations(by_errors(results), 2))
    compared = [
        compare_predictions(first.predictions, second.predictions) for first, second in couples
    ]
    adjusted = holm([paired.difference.p for paired in compared])
    return [
        Pair(first.variant, second.variant, paired, p)
        for (first, second), paired, p in zip(couples, compared, adjusted, strict=True)
    ]


def summarise(results: Sequence[Result], pairs: Sequence[Pair]) -> str:
    """Return the verdict in one sentence, and a warning of each variant that learnt nothing."""
    best = by_errors(results)[0]
    metrics = best.metrics
    told = (
        f"{best.variant} makes the fewest errors, {count(metrics['errors'])} of "
        f"{metrics['n']:,} ({percent(metrics['accuracy'])} right"
        f"{f', mean of {best.seeds} seeds' if best.seeds > 1 else ''})"
    )
    against = [pair for pair in pairs if pair.first == best.variant]
    worse = [pair.second for pair in against if pair.verdict == "worse"]
    open_ones = [pair.second for pair in against if pair.verdict != "worse"]
    if worse:
        told += f"; it is better than {render.listed(worse)}"
    if open_ones:
        told += f"; there is no evidence of a difference from {render.listed(open_ones)}"
    warnings = [
        f" Warning: {each.variant} is {each.metrics['warning']}."
        for each in results
        if "warning" in each.metrics
    ]
    return f"{told}.{''.join(warnings)}"


def variant_rows(results: Sequence[Result]) -> list[list[str]]:
    """Return the variants' figures under `VARIANT_HEADER`, the most accurate variant first."""
    rows = []
    for result in by_errors(results):
        metrics, training = result.metrics, result.training
        evaluation = metrics["evaluation"]
        accuracy = render.mean_percent(metrics["accuracy"], metrics.get("accuracy_deviation"))
        if result.seeds > 1:
            accuracy += f", {result.seeds} seeds"
        rows.append(
            [
                result.variant,
                accuracy,
                f"{percent(metrics['accuracy_low'])} – {percent(metrics['accuracy_high'])}",
                count(metrics["errors"]),
                f"{metrics['nll']:.4f}",
                f"{metrics['ece']:.4f}",
                f"{training['parameters']:,}",
                f"{training['epochs']:.2f} epochs, {duration(training['seconds'])}",
                f"{training['images_per_second']:,.0f}",
                f"{evaluation['images_per_second']:,.0f}",
                f"{evaluation['peak_memory_mb']:.0f} MB in chunks of {evaluation['chunk_size']}",
            ]
        )
    return rows


def pair_rows(pairs: Sequence[Pair]) -> list[list[str]]:
    """Return the pairs' figures under `PAIR_HEADER`."""
    return [
        [
            pair.second,
            pair.first,
            points(pair.paired.difference.value),
            f"{points(pair.paired.difference.low)} … {points(pair.paired.difference.high)}",
            count(len(pair.paired.fixed)),
            count(len(pair.paired.broken)),
            f"{pair.p:.2g}",
            pair.verdict,
        ]
        for pair in pairs
    ]


def write_markdown(
    dataset: str,
    results: Sequence[Result],
    pairs: Sequence[Pair],
    classes: int,
    settings: Report,
) -> str:
    """Return the report as Markdown; it shows no picture of the data.

    Parameters
    ----------
    dataset : str
    results : sequence of Result
        One for each variant.
    pairs : sequence of Pair
    classes : int
    settings : Report
    """
    images = results[0].metrics["n"]
    lines = [f"# {dataset}: {images:,} test images", "", summarise(results, pairs), ""]
    lines += [*render.markdown_table(VARIANT_HEADER, variant_rows(results)), ""]
    lines += [f"{made_in(results)} {NOTES}", ""]
    if pairs:
        lines += ["## Differences", "", *render.markdown_table(PAIR_HEADER, pair_rows(pairs)), ""]
        lines += [PAIR_NOTES, ""]
    for result in results:
        lines += [f"## {result.variant}", "", "Labels down, predictions across:", ""]
        matrix = result.predictions.confusion_matrix(classes)
        rows = [[f"**{label}**", *row] for label, row in enumerate(matrix)]
        lines += [*render.markdown_table(["label", *map(str, range(classes))], rows), ""]
        if result.metrics["errors"]:
            mistakes = result.predictions.surest_mistakes(settings.surest_mistakes)
            rows = [
                [row["index"], row["label"], row["prediction"], percent(row["confidence"])]
                for row in mistakes.to_dict("records")
            ]
            header = ["test image", "label", "prediction", "confidence"]
            lines += ["The surest mistakes:", "", *render.markdown_table(header, rows), ""]
        else:
            lines += ["No mistake.", ""]
    return "\n".join(lines)


NOTES = (
    "Intervals are Wilson's over test images, or Student's over seeds where there are several; the "
    "loss is the mean cross-entropy in nats; the calibration error is expected over 15 bins; "
    "memory is over the loaded model."
)
PAIR_NOTES = (
    "The same images, pair by pair: McNemar's exact test, or Welch's over seeds where both "
    "variants have several; p-values are adjusted for the number of pairs by Holm's method; below "
    "0.05 a difference counts."
)


def made_in(results: Sequence[Result]) -> str:
    """Return in which precisions and on which hardware the variants were trained and evaluated."""
    hardware = {f"{each.training['precision']} on the {each.training['device']}": None
                for each in results}  # fmt: skip
    evaluated = {each.metrics["evaluation"]["precision"]: None for each in results}
    return f"Trained in {'; '.join(hardware)}; evaluated in {', '.join(evaluated)}."


def write_page(
    dataset: str,
    results: Sequence[Result],
    pairs: Sequence[Pair],
    classes: int,
    settings: Report,
    test: SplitReader,
    origin: dict[str, str],
    budget_mb: float,
) -> str:
    """Return the report as a page.

    Parameters
    ----------
    dataset, results, pairs, classes, settings
        As of `write_markdown`.
    test : SplitReader
        The test images, for the pictures of mistakes.
    origin : dict of str to str
        What made the results, by its name.
    budget_mb : float
        The memory that evaluation is allowed, over the loaded model.
    """
    ordered = by_errors(results)
    names = [result.variant for result in ordered]

    def joined(table: str) -> pd.DataFrame:
        tables: list[pd.DataFrame] = [
            getattr(each, table).assign(variant=each.variant) for each in ordered
        ]
        return pd.concat(tables, ignore_index=True)

    matrices = {each.variant: each.predictions.confusion_matrix(classes) for each in ordered}
    first = matrices[names[0]]
    return render.page(
        "report.html",
        title=f"{dataset}: AlexNet and others on {results[0].metrics['n']:,} test images",
        dataset=dataset,
        images=results[0].metrics["n"],
        summary=summarise(results, pairs),
        made_in=made_in(results),
        notes=NOTES,
        pair_notes=PAIR_NOTES,
        variant_header=VARIANT_HEADER,
        variant_rows=variant_rows(results),
        pair_header=PAIR_HEADER,
        pair_rows=pair_rows(pairs),
        charts=[
            render.figure(
                charts.learning_curves(joined("training_curve"), names, "loss", "training loss"),
                "Training loss, the mean of the steps before each point",
                "training loss over epochs", _last(ordered, "training_curve", "loss", ".4f"),
            ),
            render.figure(
                charts.learning_curves(
                    joined("validation_curve"), names, "accuracy", "validation accuracy"
                ),
                "Accuracy on the validation split, after each epoch",
                "validation accuracy over epochs",
                _last(ordered, "validation_curve", "accuracy", ".2%"),
            ),
        ],
        reliability=render.figure(
            charts.reliability(joined("reliability"), names),
            "Accuracy of the images by the confidence of their prediction, in 15 bins; larger "
            "points hold more images; the diagonal is a model that is right as often as it is sure",
            "accuracy against confidence",
            "; ".join(
                f"{each.variant}: expected calibration error {each.metrics['ece']:.4f}"
                for each in ordered
            ),
        ),
        footprint=render.figure(
            charts.footprint(joined("footprint"), names, budget_mb),
            f"Memory by images at once; the dotted line is the budget of {budget_mb:g} MB",
            "memory against images at once, which the table gives",
        ),
        footprint_rows=[_footprint_row(each) for each in ordered],
        confusion=matrices,
        heats={name: _heats(matrix) for name, matrix in matrices.items()},
        recall_rows=[
            (
                label,
                count(first[label].sum() // ordered[0].seeds),
                [each[label, label] / max(1, each[label].sum()) for each in matrices.values()],
            )
            for label in range(classes)
        ],
        percent=percent,
        mistakes={each.variant: _pictures(each, settings.surest_mistakes, test)
                  for each in ordered},
        seeds={each.variant: each.seeds for each in ordered},
        origin=origin,
    )  # fmt: skip


def _heats(matrix: NDArray[np.int64]) -> list[list[float]]:
    """Return how deep each cell of a confusion matrix is coloured, 0…1."""
    wrong = matrix - np.diag(matrix.diagonal())
    shares = np.sqrt(wrong / max(1, wrong.max())) + np.diag((matrix.diagonal() > 0) * 0.5)
    return [[round(float(share), 3) for share in row] for row in shares]


def _last(results: Sequence[Result], table: str, column: str, form: str) -> str:
    values = (getattr(each, table)[column].iloc[-1] for each in results)
    return "at the end " + ", ".join(
        f"{each.variant} {value:{form}}" for each, value in zip(results, values, strict=True)
    )


def _footprint_row(result: Result) -> list[str]:
    """Return a variant's memory in chunks, and with the whole test set at once."""
    images = result.metrics["n"]
    evaluation = result.metrics["evaluation"]
    last = result.footprint.iloc[-1]
    whole = last["peak_memory_mb"] * images / last["chunk_size"]
    return [
        result.variant,
        f"{evaluation['peak_memory_mb']:,.0f} MB in chunks of {evaluation['chunk_size']:,}",
        f"{whole:,.0f} MB"
        if last["chunk_size"] == images
        else f"about {whole:,.0f} MB by extrapolation; not tried, for want of memory",
    ]


def _pictures(result: Result, shown: int, test: SplitReader) -> list[dict[str, Any]]:
    """Return the surest mistakes, each with its picture."""
    return [
        {
            "picture": render.picture(test.read(row["index"], row["index"] + 1).images[0]),
            "index": row["index"],
            "label": row["label"],
            "prediction": row["prediction"],
            "confidence": percent(row["confidence"]),
        }
        for row in result.predictions.surest_mistakes(shown).to_dict("records")
    ]


def describe_origin(
    results: Sequence[Result], summary: dict[str, Any], settings: dict[str, Any]
) -> dict[str, str]:
    """Return what made the results: commit, parameters, data, versions, hardware.

    The commit is the one that was checked out. It is told, and nothing depends on it.
    """
    text = io.StringIO()
    yaml = YAML()
    yaml.default_flow_style = None  # a layer on one line
    yaml.representer.ignore_aliases = lambda _: True
    yaml.dump(settings, text)
    versions = {"Python": platform.python_version()} | results[0].training["versions"]
    return {
        "Commit": describe_commit(),
        "Hardware": made_in(results),
        "Versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
        "Data, SHA-256": "\n".join(f"{each}  {role}" for role, each in summary["sha256"].items()),
        "Parameters": text.getvalue(),
    }


def describe_commit() -> str:
    """Return the commit that is checked out, and which code or parameters differ from it."""
    commit = _git("rev-parse", "HEAD")
    if not commit:
        return "unknown: this is no git repository"
    changed = [line[3:] for line in _git("status", "--porcelain", "--", *TRACKED).splitlines()]
    return commit.strip() + (f", with changes in {render.some(changed)}" if changed else "")


def _git(*command: str) -> str:
    try:
        done = subprocess.run(  # noqa: S603
            ["git", *command],  # noqa: S607
            capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:  # no git
        return ""
    return done.stdout if done.returncode == 0 else ""


def main(dataset: str) -> None:
    """Write the report of `dataset`, and the page."""
    params = Params()
    settings: Report = params.get("report", Report)
    variants: list[str] = params.get("run.variants", list[str])
    classes: int = params.get(f"datasets.{dataset}.classes", Classes)
    table: dict[str, Any] = params.get("variants", dict[str, Any])
    evaluate: dict[str, Any] = params.get("evaluate", dict[str, Any])
    made_with = {
        dataset: {
            "preprocess": params.get(f"datasets.{dataset}.preprocess", dict[str, Any]),
            "train": params.get(f"datasets.{dataset}.train", dict[str, Any]),
        },
        "preprocess": params.get("preprocess", dict[str, Any]),
        "train": params.get("train", dict[str, Any]),
        "evaluate": evaluate,
        "variants": {name: table[name] for name in variants},
    }
    summary = read_json(paths.summary(dataset))
    labels: list[int] = summary["images_per_class"]["test"]
    results = [read_result(dataset, variant, labels) for variant in variants]
    origin = describe_origin(results, summary, made_with)
    pairs = compare_pairs(results)
    with SplitReader(paths.prepared(dataset, "test")) as test:
        page = write_page(
            dataset, results, pairs, classes, settings, test, origin, evaluate["memory_budget_mb"]
        )
    write_text(paths.page(dataset), page)
    write_text(paths.report(dataset), write_markdown(dataset, results, pairs, classes, settings))
    print(f"{dataset}: {paths.report(dataset)} and {paths.page(dataset)}")
    print(summarise(results, pairs))
    print("\n".join(render.markdown_table(VARIANT_HEADER, variant_rows(results))))
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset")
