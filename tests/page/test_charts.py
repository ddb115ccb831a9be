import re
from collections.abc import Callable

import pandas as pd
import pytest

from pipeline.page import charts

VARIANTS = ["tiny_conv", "tiny_dense"]


def each_variant(**columns: list[float]) -> pd.DataFrame:
    tables = [pd.DataFrame(columns).assign(variant=name, seed=0) for name in VARIANTS]
    return pd.concat(tables, ignore_index=True)


CHARTS: dict[str, Callable[[], str]] = {
    "loss": lambda: charts.learning_curves(
        each_variant(epoch=[1, 2], loss=[0.5, 0.01]), VARIANTS, "loss", "loss"
    ),
    "accuracy": lambda: charts.learning_curves(
        each_variant(epoch=[1, 2], accuracy=[0.5, 0.9]), VARIANTS, "accuracy", "accuracy"
    ),
    "calibration": lambda: charts.calibration(
        each_variant(
            calibrated=[0, 0, 1, 1], confidence=[0.4, 0.9, 0.3, 0.8],
            accuracy=[0.5, 0.9, 0.5, 0.9], images=[3, 50, 3, 50],
        ),
        VARIANTS,
    ),
    "memory": lambda: charts.memory(
        each_variant(images=[1, 100], peak_memory_mb=[12.5, 160.0]), VARIANTS, 128
    ),
    "history": lambda: charts.history(
        pd.DataFrame(
            [
                {"revision": revision, "variant": name, "value": 0.9, "low": 0.8, "high": 1.0}
                for revision in ("a<b", "HEAD")
                for name in VARIANTS
            ]
        ),
        VARIANTS, ["a<b", "HEAD"], "accuracy", ".1%",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_shows_every_variant_in_the_pages_colours(name: str) -> None:
    """Each variant is a line in a colour of the page's style sheet, and appears in the legend."""
    svg = CHARTS[name]()
    assert svg.startswith("<svg")
    for index, variant in enumerate(VARIANTS):
        assert f">{variant}</text>" in svg
        assert f'stroke="var(--series-{index})"' in svg
    assert not re.search(r'(stroke|fill)="(#|black|white|rgb)', svg)


@pytest.mark.parametrize("name", CHARTS)
def test_a_chart_scales_and_does_not_clash_with_others(name: str) -> None:
    """A chart has no fixed size and no ids, which could clash, and is the same each time."""
    svg = CHARTS[name]()
    assert "viewBox" in svg.partition(">")[0]
    assert " width=" not in svg.partition(">")[0]
    assert " id=" not in svg
    assert "url(" not in svg
    assert CHARTS[name]() == svg


def test_a_charts_text_is_escaped() -> None:
    """The name of a revision cannot become markup."""
    assert "a&lt;b" in CHARTS["history"]()


def test_a_logarithmic_axis_has_powers_of_ten() -> None:
    """A logarithmic axis has ticks at the powers of ten around the values."""
    channel = charts.log_axis("loss", "loss", pd.Series([0.002, 3.0]))
    assert channel["axis"]["values"] == [0.001, 0.01, 0.1, 1.0, 10.0]


def test_calibration_is_drawn_before_and_after_the_temperature() -> None:
    """Each variant has a faint line before the temperature, and a clear one with points after it."""
    svg = CHARTS["calibration"]()
    for index in range(len(VARIANTS)):
        drawn = {
            line: float(opacity)
            for line, opacity in re.findall(
                rf'd="(M[\d,]+L[\d,]+)" stroke="var\(--series-{index}\)".*? opacity="([\d.]+)"', svg
            )
        }
        assert set(drawn) == {"M120,100L270,20", "M90,100L240,20"}  # at 40 and 90, at 30 and 80 %
        assert drawn["M120,100L270,20"] < drawn["M90,100L240,20"]
    points = re.findall(r'translate\((\d+),[\d.]+\)" d="M[^"]*" fill="var\(--series', svg)
    assert [points.count(at) for at in ("90", "240", "120", "270")] == [2, 2, 0, 0]


def test_a_loss_of_zero_is_left_out() -> None:
    """A loss of exactly zero, which has no logarithm, is not drawn."""
    table = each_variant(epoch=[1, 2, 3], loss=[0.5, 0.01, 0.0])
    assert "NaN" not in charts.learning_curves(table, VARIANTS, "loss", "loss")
