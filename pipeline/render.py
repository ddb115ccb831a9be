"""Tables in Markdown, and pages in HTML that need nothing but themselves."""

import base64
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

TEMPLATES = Path(__file__).parent / "templates"
MINUS = "−"

Cells = Sequence[Sequence[object]]


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table, all columns but the first one to the right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return ["| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines]


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def page(template: str, **content: Any) -> str:
    """Return a page; all text in `content` is escaped, but for charts.

    Parameters
    ----------
    template : str
        A file in `TEMPLATES`.
    **content
        What it shows.
    """
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template(template).render(**content)


def figure(svg: str, caption: str, shows: str, values: str = "") -> dict[str, str]:
    """Return a chart for the page.

    Parameters
    ----------
    svg : str
        Of `pipeline.charts`; it stands in the page as it is.
    caption : str
    shows : str
        What the chart is of, for who hears the page.
    values : str
        The most telling values, likewise.
    """
    label = f"Chart of {shows}" + (f": {values}" if values else "")
    # Vega escapes the text in a chart.
    return {"svg": Markup(svg), "caption": caption, "label": label}  # noqa: S704


def picture(image: NDArray[np.uint8]) -> str:
    """Return an image of shape (height, width, 1) as a PNG in a data URL."""
    content = io.BytesIO()
    Image.fromarray(image[..., 0]).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"


def percent(share: float) -> str:
    """Return a share in percent, with two digits."""
    return f"{share:.2%}"


def mean_percent(share: float, deviation: float | None) -> str:
    """Return a share in percent, with its deviation over seeds where there is one."""
    return percent(share) + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", MINUS)


def count(number: float) -> str:
    """Return a count; a mean of counts has one digit."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def some(items: Sequence[object], shown: int = 10) -> str:
    """Return the first items, and how many more there are."""
    more = len(items) - shown
    text = ", ".join(map(str, items[:shown]))
    return f"{text} and {more:,} more" if more > 0 else text


def listed(names: Sequence[str]) -> str:
    """Return names as a sentence lists them."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
