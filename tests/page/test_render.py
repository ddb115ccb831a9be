import base64
import io

import numpy as np
import pytest
from jinja2 import UndefinedError
from PIL import Image

from pipeline.page.render import figure, picture, render

PAGE = {"summary": "", "header": [], "rows": [], "details": [], "errors": [], "history": {}}


def test_text_is_escaped_in_a_page() -> None:
    """Text from revisions or parameters cannot become markup."""
    text = "<script>alert(1)</script>"
    page = render(
        "compare.html", title=text, summary=text, header=[text], rows=[[text, text]],
        details=[text], errors=[text], history={text: [figure("<svg></svg>", text, text, text)]},
    )  # fmt: skip
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 10
    assert "<svg></svg>" in page


def test_a_missing_variable_is_an_error() -> None:
    """A template does not silently leave out a variable that is missing."""
    with pytest.raises(UndefinedError, match="title"):
        render("compare.html", **PAGE)


def test_a_figure_is_described() -> None:
    """A figure has its caption, and a label with its main values for screen readers."""
    assert figure("<svg>", "Loss", "loss over epochs", "0.1") == {
        "svg": "<svg>", "caption": "Loss", "label": "Chart of loss over epochs: 0.1",
    }  # fmt: skip
    assert figure("<svg>", "Loss", "loss")["label"] == "Chart of loss"


@pytest.mark.parametrize("channels", [1, 3])
def test_a_picture_has_the_images_pixels(channels: int) -> None:
    """A picture is a PNG with the image's pixels, inside the page, in colour or without."""
    image = np.arange(12 * channels, dtype=np.uint8).reshape(3, 4, channels)
    kind, _, data = picture(image).partition(",")
    assert kind == "data:image/png;base64"
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(read.reshape(image.shape), image)
