"""Templates filled in: Markdown, and self-contained HTML pages."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from pipeline.page.text import markdown_table

TEMPLATES = Path(__file__).parent / "templates"


def render(template: str, **content: Any) -> str:
    """Return a filled-in template; in HTML all text but the charts is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=template.endswith(".html"),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["markdown_table"] = markdown_table
    return environment.get_template(template).render(**content)


def figure(svg: str, caption: str, shows: str, values: str = "") -> dict[str, str]:
    """Return a chart for a page, with what it shows, and the main values, for screen readers."""
    label = f"Chart of {shows}" + (f": {values}" if values else "")
    # Vega escapes the text in a chart.
    return {"svg": Markup(svg), "caption": caption, "label": label}  # noqa: S704


def picture(image: NDArray[np.uint8]) -> str:
    """Return an image of shape (height, width, 1 or 3) as a PNG in a data URL."""
    pixels = image[..., 0] if image.shape[-1] == 1 else image
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
