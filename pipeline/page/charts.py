"""Charts as SVG text, drawn by Vega-Lite.

Colours are variables of the page's style sheet, ``--ink``, ``--grid`` and ``--series-0`` on, so
that one chart serves light, dark and print.
"""

import math
import re
from collections.abc import Sequence
from typing import Any

import pandas as pd
import vl_convert

WIDTH, HEIGHT = 300, 200
SERIES_COLOURS = 8
DASHES = [[1, 0], [6, 2], [2, 2], [8, 2, 2, 2]]
INK = "var(--ink)"
STYLE = {
    "background": None,
    "font": "system-ui, sans-serif",
    "axis": {
        "labelColor": INK, "titleColor": INK, "titleFontWeight": "normal",
        "gridColor": "var(--grid)", "domainColor": "var(--grid)", "tickColor": "var(--grid)",
    },
    "legend": {
        "labelColor": INK, "title": None, "orient": "bottom", "columns": 2, "labelLimit": 0,
        "symbolStrokeWidth": 2, "columnPadding": 16,
    },
    "view": {"stroke": None},
}  # fmt: skip


def series_channels(variants: Sequence[str]) -> dict[str, Any]:
    """Return the channels that tell variants apart: colour and, for accessibility, dash pattern.

    The same list gives the same colours.
    """
    names = list(variants)
    colours = [f"var(--series-{index % SERIES_COLOURS})" for index in range(len(names))]
    dashes = [DASHES[index % len(DASHES)] for index in range(len(names))]
    channel = {"field": "variant", "type": "nominal", "sort": names}
    return {
        "color": channel | {"scale": {"domain": names, "range": colours}},
        "strokeDash": channel | {"scale": {"domain": names, "range": dashes}},
    }


def axis(field: str, title: str, **more: Any) -> dict[str, Any]:
    """Return a channel of numbers with a title; `more` is passed to Vega-Lite."""
    return {"field": field, "type": "quantitative", "title": title, "axis": {"tickCount": 5}} | more


def log_axis(field: str, title: str, values: pd.Series) -> dict[str, Any]:
    """Return a channel on a logarithmic scale, with a tick at each power of ten."""
    low, high = math.floor(math.log10(values.min())), math.ceil(math.log10(values.max()))
    ticks = [10.0**power for power in range(low, high + 1)]
    return axis(field, title, scale={"type": "log"}, axis={"values": ticks, "format": "~g"})


def draw(table: pd.DataFrame, *layers: dict[str, Any], **channels: Any) -> str:
    """Return a chart as SVG that fills the width of its place, up to its own.

    `layers` are marks, each with channels of its own if it has any; they share `channels`.
    """
    specification = {
        "$schema": "https://vega.github.io/schema/vega-lite/v5.json",
        "width": WIDTH,
        "height": HEIGHT,
        "config": STYLE,
        "data": {"values": table.to_dict("records")},
        "encoding": channels,
        "layer": list(layers),
    }
    svg = vl_convert.vegalite_to_svg(specification)
    # The page scales it by its viewBox, and describes it once, not mark by mark.
    svg = re.sub(r'(<svg[^>]*?) width="\d+" height="\d+"', r'\1 aria-hidden="true"', svg, count=1)
    return re.sub(r' (role|aria-(?!hidden)[a-z]+|xmlns:?[a-z]*)="[^"]*"', "", svg)


def lines_and_points(
    channels: dict[str, Any], opacity: float = 1.0, **of_points: Any
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return two layers: a line for each series, and its points, which have no dashes.

    `opacity` is that of the lines, and `of_points` are channels of the points alone.
    """
    points = {key: value for key, value in channels.items() if key != "strokeDash"} | of_points
    return (
        {"mark": {"type": "line", "strokeWidth": 1.5, "opacity": opacity}, "encoding": channels},
        {"mark": {"type": "point", "filled": True, "size": 30, "opacity": 0.9}, "encoding": points},
    )


def learning_curves(table: pd.DataFrame, variants: Sequence[str], value: str, title: str) -> str:
    """Draw the column `value` over epochs: a line for each variant and seed.

    A ``"loss"`` is drawn on a logarithmic scale, since it falls by orders of magnitude.
    """
    shown = table[table[value] > 0]
    share = {"scale": {"zero": False}, "axis": {"format": ".1%", "tickCount": 5}}
    return draw(
        shown[["variant", "seed", "epoch", value]],
        {"mark": {"type": "line", "strokeWidth": 1.5}},
        x=axis("epoch", "epoch"),
        y=log_axis(value, title, shown[value]) if value == "loss" else axis(value, title, **share),
        detail={"field": "seed", "type": "nominal"},
        **series_channels(variants),
    )


def calibration(table: pd.DataFrame, variants: Sequence[str]) -> str:
    """Draw accuracy against confidence; a perfectly calibrated model lies on the diagonal.

    The table has the columns variant, seed, calibrated (0 or 1), confidence, accuracy and images.
    """
    share = {"scale": {"domain": [0, 1]}, "axis": {"format": ".0%", "tickCount": 5}}
    diagonal = {
        "data": {"values": [{"at": 0}, {"at": 1}]},
        "mark": {"type": "line", "color": INK, "strokeWidth": 1, "opacity": 0.5},
        "encoding": {"x": axis("at", "confidence", **share), "y": axis("at", "accuracy", **share)},
    }
    channels = {
        "x": axis("confidence", "confidence", **share),
        "y": axis("accuracy", "accuracy", **share),
        "detail": {"field": "seed", "type": "nominal"},
        **series_channels(variants),
    }
    before, after = ({"filter": f"datum.calibrated == {each}"} for each in (0, 1))
    faint = {"mark": {"type": "line", "strokeWidth": 1, "opacity": 0.35}, "encoding": channels}
    size = {
        "field": "images", "type": "quantitative", "legend": None,
        "scale": {"type": "sqrt", "range": [12, 120]},
    }  # fmt: skip
    calibrated = lines_and_points(channels, opacity=0.7, size=size)
    layers = [{**faint, "transform": [before]}]
    layers += [{**each, "transform": [after]} for each in calibrated]
    return draw(table, diagonal, *layers)


def memory(table: pd.DataFrame, variants: Sequence[str], budget_mb: float) -> str:
    """Draw memory against the images in a batch, both logarithmic, and the budget as a line.

    The table has the columns variant, images and peak_memory_mb.
    """
    budget = {
        "data": {"values": [{"budget": budget_mb}]},
        "mark": {"type": "rule", "color": INK, "strokeDash": [2, 4]},
        "encoding": {"y": {"field": "budget", "type": "quantitative"}},
    }
    shown = table[table["peak_memory_mb"] > 0]
    channels = {
        "x": log_axis("images", "images in a batch", shown["images"]),
        "y": log_axis("peak_memory_mb", "memory over the model, MB", shown["peak_memory_mb"]),
        **series_channels(variants),
    }
    return draw(shown, *lines_and_points(channels), budget)


def history(
    table: pd.DataFrame, variants: Sequence[str], revisions: Sequence[str], title: str, form: str
) -> str:
    """Draw a metric over revisions, with its interval where it has one.

    The table has the columns variant, revision, value, low and high, the title has the unit, and
    `form` is how to write the values, as d3-format has it.
    """
    channels = {
        "x": {
            "field": "revision", "type": "ordinal", "sort": list(revisions), "title": None,
            "axis": {"labelAngle": -45, "labelLimit": 90, "grid": False},
        },
        "y": axis("value", title, scale={"zero": False}, axis={"format": form, "tickCount": 5}),
        **series_channels(variants),
    }  # fmt: skip
    lines, points = lines_and_points(channels)
    ends = {"y": {"field": "low", "type": "quantitative"}, "y2": {"field": "high"}}
    bars = {"mark": {"type": "rule", "opacity": 0.5}, "encoding": points["encoding"] | ends}
    return draw(table, lines, points, bars)
