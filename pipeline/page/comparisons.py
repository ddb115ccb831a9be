"""Comparisons of revisions as text, Markdown, JSON or a page."""

import json
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import pandas as pd

from pipeline.page import charts, render
from pipeline.page.text import markdown_table, mean_percent, points, some
from pipeline.scores.comparison import Comparison, Outcome
from pipeline.scores.revisions import Key, Measured
from pipeline.scores.significance import accuracy_interval

# The charts of the page: name, title with its unit, and number format.
HISTORY = (
    ("accuracy", "test accuracy", ".2%"),
    ("nll", "test loss, nats", ".3f"),
    ("ece", "calibration error", ".3f"),
    ("evaluation_images_per_second", "evaluation, images/s", "~s"),
    ("peak_memory_mb", "evaluation memory, MB", ".0f"),
)

COMMIT = re.compile(r"[0-9a-f]{40}")
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
            "–" if each.unpaired_because else f"{len(each.fixed):,}",
            "–" if each.unpaired_because else f"{len(each.broken):,}",
            f"{each.adjusted_p:.2g}",
            each.verdict + _how(each),
        ]
        for each in comparisons
    ]


def _accuracy(metrics: dict[str, Any]) -> str:
    return mean_percent(1 - metrics["errors"] / metrics["n"], metrics.get("accuracy_deviation"))


def _how(comparison: Comparison) -> str:
    """Return how it was compared, unless image by image."""
    if comparison.unpaired_because:
        return " (not paired)"
    if comparison.over_seeds:
        return " (over seeds)"
    several = "by_seed" in comparison.before or "by_seed" in comparison.after
    return " (first seeds)" if several else ""


def details(outcome: Outcome) -> list[str]:
    """Return what changed between the revisions, and which images flipped, line by line."""
    lines = []
    for each in outcome.comparisons:
        facts = {
            "not paired": each.unpaired_because,
            "changed": some(each.changed),
            "fixed images": some(each.fixed),
            "broken images": some(each.broken),
        }
        if told := "; ".join(f"{name}: {fact}" for name, fact in facts.items() if fact):
            lines.append(f"{each.dataset} / {each.variant} at {each.revision}: {told}")
    return lines + outcome.notes


def as_text(outcome: Outcome) -> str:
    """Return the comparisons as a table for a terminal."""
    rows = [list(HEADER), *table_rows(outcome.comparisons)]
    widths = [max(len(row[column]) for row in rows) for column in range(len(HEADER))]
    table = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([_title(outcome.comparisons), "", *table, "", *details(outcome)]).rstrip()


def as_markdown(outcome: Outcome) -> str:
    """Return the comparisons as a Markdown table."""
    table = markdown_table(table_rows(outcome.comparisons), HEADER)
    notes = [f"- {line}" for line in details(outcome)]
    return "\n".join([_title(outcome.comparisons), "", table, "", *notes]).rstrip()


def as_json(outcome: Outcome) -> str:
    """Return the comparisons with all details, images included, as JSON."""
    entries = [
        vars(each) | {"difference": each.difference._asdict(), "verdict": each.verdict}
        for each in outcome.comparisons
    ]
    return json.dumps(entries, indent=2, ensure_ascii=False)


def as_page(outcome: Outcome) -> str:
    """Return the comparisons as a page with the history of each metric."""
    datasets = dict.fromkeys(key[0] for each in outcome.measured.values() for key in each)
    return render.render(
        "compare.html",
        title=f"{' · '.join(map(short, outcome.measured))}: is it better?",
        summary=_title(outcome.comparisons),
        header=HEADER,
        rows=table_rows(outcome.comparisons),
        details=details(outcome),
        errors=outcome.errors,
        history={name: _draw_history(outcome.measured, name) for name in datasets},
    )


def short(revision: str) -> str:
    """Return a revision's name; a commit's is shortened."""
    return revision[:9] if COMMIT.fullmatch(revision) else revision


def _draw_history(measured: dict[str, dict[Key, Measured]], dataset: str) -> list[dict[str, str]]:
    """Return a chart of each metric of a data set over the revisions."""
    rows = []
    for revision, by_key in measured.items():
        for key, each in by_key.items():
            if key[0] == dataset:
                low, high = accuracy_interval(each.metrics)
                interval = {"accuracy_low": low, "accuracy_high": high}
                names = {"revision": short(revision), "variant": key[1]}
                rows.append(names | each.profile | each.metrics | interval)
    table = pd.DataFrame(rows)
    variants, revisions = table["variant"].unique().tolist(), [*map(short, measured)]
    drawn = []
    for name, title, form in HISTORY:
        if name in table:
            known = table.dropna(subset=name)
            ends = {end: known.get(f"{name}_{end}", known[name]) for end in ("low", "high")}
            known = known[["revision", "variant"]].assign(value=known[name], **ends)
            caption = title + (", with its 95 % interval" if name == "accuracy" else "")
            values = ", ".join(
                f"{each.variant} at {each.revision} {each.value:.4g}" for each in known.itertuples()
            )
            svg = charts.history(known, variants, revisions, title, form)
            drawn.append(render.figure(svg, caption, f"{title} over the revisions", values))
    return drawn


FORMATS = {"text": as_text, "markdown": as_markdown, "json": as_json, "html": as_page}


def _title(comparisons: Sequence[Comparison]) -> str:
    counts = Counter(each.verdict for each in comparisons)
    kinds = ("better", "worse", "no evidence of a difference")
    told = ", ".join(f"{counts[kind]} {kind}" for kind in kinds if counts[kind])
    tests = f"{len(comparisons)} comparison{'s' if len(comparisons) > 1 else ''}"
    return f"Against {comparisons[0].baseline}: {told} ({tests}; p-values by Holm)."
