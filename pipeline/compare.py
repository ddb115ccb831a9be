"""Compare revisions: which variants became better or worse, and which show no evidence of either.

``python -m pipeline.compare [REV …]`` holds each revision against the first one, for every data set
and variant: HEAD against the workspace, if none is named. A REV is a commit, branch, tag, DVC
experiment or ``workspace``. The same test images are compared pair by pair (McNemar's exact test).
"""

import argparse
import json
import math
import re
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from pipeline import charts, render
from pipeline.errors import DataError, OutputError
from pipeline.files import write_text
from pipeline.predictions import Predictions
from pipeline.render import markdown_table, points, some
from pipeline.revisions import WORKSPACE, Key, Measured, Revisions
from pipeline.statistics import (
    Difference,
    Paired,
    compare_predictions,
    holm,
    paired_difference,
    unpaired_difference,
    verdict,
)

# What the page draws over the revisions: name, title with the unit, and how to write it.
HISTORY = (
    ("accuracy", "test accuracy", ".2%"),
    ("nll", "test loss, nats", ".3f"),
    ("ece", "calibration error", ".3f"),
    ("images_per_second", "evaluation, images/s", "~s"),
    ("peak_memory_mb", "evaluation memory, MB", ".0f"),
)


COMMIT = re.compile(r"[0-9a-f]{40}")


@dataclass(frozen=True)
class Comparison:
    """A variant at a revision, held against the baseline.

    Attributes
    ----------
    dataset, variant, baseline, revision : str
    before, after : dict
        The metrics of both.
    difference : Difference
        In accuracy, revision minus baseline; its p-value is of this one test.
    adjusted_p : float
        The p-value adjusted for all tests of the call.
    over_seeds : bool
        Whether means over seeds were compared.
    unpaired_because : str
        Why the images were not compared pair by pair; empty if they were.
    fixed, broken : list of int
        The images that only the revision, or only the baseline, has right; empty if not paired.
    changed : list of str
        Parameters with both values, and files of code, that differ.
    """

    dataset: str
    variant: str
    baseline: str
    revision: str
    before: dict[str, Any]
    after: dict[str, Any]
    difference: Difference
    adjusted_p: float
    over_seeds: bool
    unpaired_because: str
    fixed: list[int]
    broken: list[int]
    changed: list[str]

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no evidence of a difference``."""
        return verdict(self.difference.value, self.adjusted_p)


def compare(key: Key, names: tuple[str, str], before: Measured, after: Measured) -> Comparison:
    """Compare what two revisions measured of a variant.

    Parameters
    ----------
    key : tuple of str
        Data set and variant.
    names : tuple of str
        Of the baseline and the revision.
    before, after : Measured
    """
    first, second = before.predictions, after.predictions
    same = before.digest is not None and before.digest == after.digest
    reason = "" if same else why_unpaired(names, first, second)
    if same:
        paired = Paired(paired_difference(before.metrics["n"], 0, 0), [], [], False)
    elif reason or first is None or second is None:
        counts = [
            (each.metrics["n"] - round(each.metrics["errors"]), each.metrics["n"])
            for each in (before, after)
        ]
        paired = Paired(unpaired_difference(*counts[0], *counts[1]), [], [], False)
    else:
        paired = compare_predictions(first, second)
    return Comparison(
        *key, *names, before.metrics, after.metrics, paired.difference, paired.difference.p,
        paired.over_seeds, reason, paired.fixed, paired.broken,
        list(changed_inputs(before.inputs, after.inputs)),
    )  # fmt: skip


def why_unpaired(
    names: tuple[str, str], first: Predictions | None, second: Predictions | None
) -> str:
    """Return why two revisions' predictions are not of the same images; empty if they are."""
    if first is None or second is None:
        pairs = zip(names, (first, second), strict=True)
        lacking = [name for name, table in pairs if table is None]
        return f"no predictions of {' and '.join(lacking)} in DVC's cache or remote"
    images = [each.test_images for each in (first, second)]
    if images[0] != images[1]:
        return f"{names[0]} has {images[0]:,} test images, {names[1]} has {images[1]:,}"
    return "" if first.test_set == second.test_set else "the test images have other labels"


def changed_inputs(before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    """Yield what differs: parameters with their values, then the names of files of code."""
    names = dict.fromkeys([*before, *after])
    for name in sorted(names, key=lambda name: name.endswith(".py")):
        old, new = before.get(name), after.get(name)
        if old != new:
            yield name if name.endswith(".py") else f"{name}: {old} → {new}"


class Outcome(NamedTuple):
    """Revisions held against the first one that could be read.

    Attributes
    ----------
    comparisons : list of Comparison
        With p-values adjusted for their number.
    errors : list of str
        Why a revision, or a variant of it, could not be compared; the others were.
    measured : dict of str to dict
        What each revision measured, by its name.
    """

    comparisons: list[Comparison]
    errors: list[str]
    measured: dict[str, dict[Key, Measured]]


def compare_revisions(revisions: Revisions, names: Sequence[str]) -> Outcome:
    """Hold each revision against the first one."""
    errors: list[str] = []
    measured: dict[str, dict[Key, Measured]] = {}
    for name in dict.fromkeys(names):
        try:
            measured[name] = revisions.read(name)
        except DataError as error:
            errors.append(str(error))
    comparisons: list[Comparison] = []
    baseline, *others = measured or [""]
    for name in others:
        before, after = measured[baseline], measured[name]
        errors += [
            f"{lacking}: has no metrics of {' / '.join(key)}"
            for lacking, keys in ((name, before.keys() - after), (baseline, after.keys() - before))
            for key in sorted(keys)
        ]
        comparisons += [
            compare(key, (baseline, name), before[key], after[key])
            for key in before
            if key in after
        ]
    adjusted = holm([each.difference.p for each in comparisons])
    comparisons = [
        replace(each, adjusted_p=p) for each, p in zip(comparisons, adjusted, strict=True)
    ]
    return Outcome(comparisons, errors, measured)


HEADER = (
    "data set", "variant", "revision", "accuracy", "change, points", "95 % interval", "fixed",
    "broken", "p", "verdict",
)  # fmt: skip


def table_rows(comparisons: Sequence[Comparison]) -> list[list[str]]:
    """Return a row of text for each comparison, under `HEADER`."""
    return [
        [
            each.dataset,
            each.variant,
            each.revision,
            f"{_accuracy(each.before)} → {_accuracy(each.after)}",
            points(each.difference.value),
            f"{points(each.difference.low)} … {points(each.difference.high)}",
            f"{len(each.fixed):,}" if not each.unpaired_because else "–",
            f"{len(each.broken):,}" if not each.unpaired_because else "–",
            f"{each.adjusted_p:.2g}",
            each.verdict + _how(each),
        ]
        for each in comparisons
    ]


def _accuracy(metrics: dict[str, Any]) -> str:
    share = 1 - metrics["errors"] / metrics["n"]
    return render.mean_percent(share, metrics.get("accuracy_deviation"))


def _how(comparison: Comparison) -> str:
    """Return what was compared, where it is not one prediction for each image."""
    if comparison.unpaired_because:
        return " (not paired)"
    if comparison.over_seeds:
        return " (over seeds)"
    several = ["by_seed" in metrics for metrics in (comparison.before, comparison.after)]
    return " (first seeds)" if any(several) else ""


def details(comparisons: Sequence[Comparison]) -> list[str]:
    """Return lines that say what changed between the revisions, and which images flipped."""
    lines = []
    for each in comparisons:
        facts = []
        if each.unpaired_because:
            facts.append(f"not paired: {each.unpaired_because}")
        if each.changed:
            facts.append(f"changed: {some(each.changed)}")
        if each.fixed:
            facts.append(f"fixed images: {some(each.fixed)}")
        if each.broken:
            facts.append(f"broken images: {some(each.broken)}")
        if facts:
            lines.append(f"{each.dataset} / {each.variant} at {each.revision}: {'; '.join(facts)}")
    return lines


def as_text(outcome: Outcome) -> str:
    """Return the comparisons as a table for a terminal."""
    rows = [list(HEADER), *table_rows(outcome.comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    lines = [_title(outcome.comparisons), "", *table, "", *details(outcome.comparisons)]
    return "\n".join(lines).rstrip()


def as_markdown(outcome: Outcome) -> str:
    """Return the comparisons as a Markdown table."""
    table = markdown_table(HEADER, table_rows(outcome.comparisons))
    notes = [f"- {line}" for line in details(outcome.comparisons)]
    return "\n".join([_title(outcome.comparisons), "", *table, "", *notes]).rstrip()


def as_json(outcome: Outcome) -> str:
    """Return all that is known of the comparisons, images included, as JSON."""
    entries = [
        vars(each) | {"difference": each.difference._asdict(), "verdict": each.verdict}
        for each in outcome.comparisons
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False)


def as_page(outcome: Outcome) -> str:
    """Return the comparisons as a page, with each metric's history over the revisions."""
    datasets = dict.fromkeys(key[0] for each in outcome.measured.values() for key in each)
    return render.page(
        "compare.html",
        title=f"{' · '.join(map(short, outcome.measured))}: is it better?",
        summary=_title(outcome.comparisons),
        header=HEADER,
        rows=table_rows(outcome.comparisons),
        details=details(outcome.comparisons),
        errors=outcome.errors,
        history={name: _draw_history(outcome.measured, name) for name in datasets},
    )


def short(revision: str) -> str:
    """Return a revision's name; a commit's is shortened."""
    return revision[:9] if COMMIT.fullmatch(revision) else revision


def _draw_history(measured: dict[str, dict[Key, Measured]], dataset: str) -> list[dict[str, str]]:
    """Return a chart of each metric of a data set over the revisions."""
    rows = [
        {"revision": short(revision), "variant": key[1]} | each.metrics.get("evaluation", {})
        | each.metrics
        for revision, by_key in measured.items()
        for key, each in by_key.items()
        if key[0] == dataset
    ]  # fmt: skip
    variants = list(dict.fromkeys(row["variant"] for row in rows))
    drawn: list[dict[str, str]] = []
    for name, title, form in HISTORY:
        values = [
            {
                "revision": row["revision"],
                "variant": row["variant"],
                "value": row[name],
                "low": row.get(f"{name}_low", row[name]),
                "high": row.get(f"{name}_high", row[name]),
            }
            for row in rows
            if name in row
        ]
        if values:
            names = [short(revision) for revision in measured]
            svg = charts.history(pd.DataFrame(values), variants, names, title, form)
            drawn.append(
                render.figure(
                    svg,
                    title + (", with its 95 % interval" if name == "accuracy" else ""),
                    f"{title} over the revisions",
                    ", ".join(
                        f"{each['variant']} at {each['revision']} {each['value']:.4g}"
                        for each in values
                    ),
                )
            )
    return drawn


FORMATS = {"text": as_text, "markdown": as_markdown, "json": as_json, "html": as_page}


def _title(comparisons: Sequence[Comparison]) -> str:
    counts = {
        kind: sum(each.verdict == kind for each in comparisons)
        for kind in ("better", "worse", "no evidence of a difference")
    }
    told = ", ".join(f"{count} {kind}" for kind, count in counts.items() if count)
    tests = f"{len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''}"
    return f"Against {comparisons[0].baseline}: {told} ({tests}; p-values by Holm)."


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("revisions", nargs="*", metavar="REV", help="the first one is the baseline")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="where to write it, not here")
    parser.add_argument(
        "--fail-if-worse", action="store_true", help="exit with 1 if a variant became worse"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        metavar="POINTS",
        help="a loss of accuracy of up to so many percentage points is borne (default: 0)",
    )
    parsed = parser.parse_args(arguments)
    if not 0 <= parsed.tolerance < math.inf:
        parser.error(f"--tolerance: expected at least 0, received {parsed.tolerance}")
    if not parsed.revisions:
        parsed.revisions = ["HEAD", WORKSPACE]
    elif len(parsed.revisions) == 1:
        parsed.revisions.append(WORKSPACE)
    if len(set(parsed.revisions)) == 1:
        parser.error(f"expected two revisions to compare, received {parsed.revisions[0]} twice")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Compare, and return 1 if something could not be compared, or became worse and must not."""
    parsed = parse_arguments(arguments)
    try:
        outcome = compare_revisions(Revisions(Path.cwd()), parsed.revisions)
        if outcome.comparisons:
            text = FORMATS[parsed.format](outcome)
            if parsed.output:
                write_text(parsed.output, text + "\n")
            else:
                print(text)
    except (DataError, OutputError) as error:
        outcome = Outcome([], [str(error)], {})
    for reason in outcome.errors:
        print(f"error: {reason}", file=sys.stderr)
    worse = [
        each
        for each in outcome.comparisons
        if each.verdict == "worse" and -100 * each.difference.value > parsed.tolerance
    ]
    if parsed.fail_if_worse and worse:
        named = ", ".join(f"{each.dataset} / {each.variant} at {each.revision}" for each in worse)
        print(f"error: worse than {worse[0].baseline}: {named}", file=sys.stderr)
        return 1
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    sys.exit(main())
