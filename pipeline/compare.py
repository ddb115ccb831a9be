"""Compare revisions: which variants became better or worse, and which show no evidence of either.

``python -m pipeline.compare [REV …]`` holds each revision against the first one, for every data set
and variant: HEAD against the workspace, if none is named. A REV is a commit, branch, tag, DVC
experiment or ``workspace``. The same test images are compared pair by pair (McNemar's exact test).
"""

import argparse
import json
import math
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd

from pipeline.errors import DataError
from pipeline.revisions import WORKSPACE, Key, Measured, Revisions
from pipeline.statistics import (
    Difference,
    holm,
    paired_difference,
    unpaired_difference,
    verdict,
)

SHOWN = 10  # flipped images, and changed parameters, before "…"
MINUS = "−"


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
    fixed: list[int] = []
    broken: list[int] = []
    same = before.digest is not None and before.digest == after.digest
    reason = "" if same else why_unpaired(names, first, second)
    if same:
        difference = paired_difference(before.metrics["n"], 0, 0)
    elif reason or first is None or second is None:
        counts = [
            (each.metrics["n"] - each.metrics["errors"], each.metrics["n"])
            for each in (before, after)
        ]
        difference = unpaired_difference(*counts[0], *counts[1])
    else:
        index = first["index"]
        right_before, right_after = (
            table["label"] == table["prediction"] for table in (first, second)
        )
        fixed = index[~right_before & right_after].tolist()
        broken = index[right_before & ~right_after].tolist()
        difference = paired_difference(len(index), len(fixed), len(broken))
    return Comparison(
        *key, *names, before.metrics, after.metrics, difference, difference.p, reason,
        fixed, broken, list(changed_inputs(before.inputs, after.inputs)),
    )  # fmt: skip


def why_unpaired(
    names: tuple[str, str], first: pd.DataFrame | None, second: pd.DataFrame | None
) -> str:
    """Return why two tables of predictions are not of the same images; empty if they are."""
    if first is None or second is None:
        pairs = zip(names, (first, second), strict=True)
        lacking = [name for name, table in pairs if table is None]
        return f"no predictions of {' and '.join(lacking)} in DVC's cache or remote"
    if len(first) != len(second):
        return f"{names[0]} has {len(first):,} test images, {names[1]} has {len(second):,}"
    same = (first["index"] == second["index"]) & (first["label"] == second["label"])
    return "" if bool(same.all()) else "the test images have other labels"


def changed_inputs(before: dict[str, Any], after: dict[str, Any]) -> Iterable[str]:
    """Yield what differs: a parameter with its values, or the name of a file of code."""
    for name in dict.fromkeys([*before, *after]):
        old, new = before.get(name), after.get(name)
        if old != new:
            yield name if name.endswith(".py") else f"{name}: {old} → {new}"


def compare_revisions(
    revisions: Revisions, names: Sequence[str]
) -> tuple[list[Comparison], list[str]]:
    """Hold each revision against the first one.

    Returns
    -------
    comparisons : list of Comparison
        With p-values adjusted for their number.
    errors : list of str
        Why a revision, or a variant of it, could not be compared; the others were.
    """
    errors: list[str] = []
    measured: dict[str, dict[Key, Measured]] = {}
    for name in dict.fromkeys(names):
        try:
            measured[name] = revisions.read(name)
        except DataError as error:
            errors.append(str(error))
    baseline = names[0]
    comparisons: list[Comparison] = []
    if baseline not in measured:
        return comparisons, errors
    for name, after in measured.items():
        if name == baseline:
            continue
        before = measured[baseline]
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
    return [
        replace(each, adjusted_p=p) for each, p in zip(comparisons, adjusted, strict=True)
    ], errors


def points(share: float) -> str:
    """Return a difference in accuracy in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", MINUS)


def _some(items: Sequence[object]) -> str:
    shown = ", ".join(map(str, items[:SHOWN]))
    return f"{shown}, …" if len(items) > SHOWN else shown


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
            f"{1 - each.before['errors'] / each.before['n']:.2%} → "
            f"{1 - each.after['errors'] / each.after['n']:.2%}",
            points(each.difference.value),
            f"{points(each.difference.low)} … {points(each.difference.high)}",
            f"{len(each.fixed):,}" if not each.unpaired_because else "–",
            f"{len(each.broken):,}" if not each.unpaired_because else "–",
            f"{each.adjusted_p:.2g}",
            f"{each.verdict}{' (not paired)' if each.unpaired_because else ''}",
        ]
        for each in comparisons
    ]


def details(comparisons: Sequence[Comparison]) -> list[str]:
    """Return lines that say what changed between the revisions, and which images flipped."""
    lines = []
    for each in comparisons:
        facts = []
        if each.unpaired_because:
            facts.append(f"not paired: {each.unpaired_because}")
        if each.changed:
            facts.append(f"changed: {_some(each.changed)}")
        if each.fixed:
            facts.append(f"fixed images: {_some(each.fixed)}")
        if each.broken:
            facts.append(f"broken images: {_some(each.broken)}")
        if facts:
            lines.append(f"{each.dataset} / {each.variant} at {each.revision}: {'; '.join(facts)}")
    return lines


def as_text(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a table for a terminal."""
    rows = [list(HEADER), *table_rows(comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([_title(comparisons), "", *table, "", *details(comparisons)]).rstrip()


def as_markdown(comparisons: Sequence[Comparison]) -> str:
    """Return the comparisons as a Markdown table."""
    rows = [HEADER, ["---"] * len(HEADER), *table_rows(comparisons)]
    table = ["| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows]
    notes = [f"- {line}" for line in details(comparisons)]
    return "\n".join([_title(comparisons), "", *table, "", *notes]).rstrip()


def as_json(comparisons: Sequence[Comparison]) -> str:
    """Return all that is known of the comparisons, images included, as JSON."""
    entries = [
        vars(each) | {"difference": each.difference._asdict(), "verdict": each.verdict}
        for each in comparisons
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False)


FORMATS = {"text": as_text, "markdown": as_markdown, "json": as_json}


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
        comparisons, errors = compare_revisions(Revisions(Path.cwd()), parsed.revisions)
    except DataError as error:
        comparisons, errors = [], [str(error)]
    if comparisons:
        print(FORMATS[parsed.format](comparisons))
    for reason in errors:
        print(f"error: {reason}", file=sys.stderr)
    worse = [
        each
        for each in comparisons
        if each.verdict == "worse" and -100 * each.difference.value > parsed.tolerance
    ]
    if parsed.fail_if_worse and worse:
        named = ", ".join(f"{each.dataset} / {each.variant} at {each.revision}" for each in worse)
        print(f"error: worse than {worse[0].baseline}: {named}", file=sys.stderr)
        return 1
    return 1 if errors else 0


if __name__ == "__main__":
    sys.exit(main())
