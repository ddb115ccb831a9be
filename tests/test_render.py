import base64
import io

import numpy as np
import pytest
from PIL import Image

from pipeline import render


def test_a_markdown_table_has_its_columns() -> None:
    """A table has a header, a rule and a line a row; a bar in a cell does not end it."""
    assert render.markdown_table(["name", "n"], [["a|b", 1]]) == [
        "| name | n |", "| --- | ---: |", "| a\\|b | 1 |",
    ]  # fmt: skip


def test_text_is_escaped_in_a_page() -> None:
    """Text from revisions or parameters cannot become markup."""
    text = "<script>alert(1)</script>"
    page = render.page(
        "compare.html", title=text, summary=text, header=[text], rows=[[text, text]],
        details=[text], errors=[text], history={text: []},
    )  # fmt: skip
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 7


def test_a_picture_is_the_image() -> None:
    """A picture is a PNG, with the same pixels, inside the page."""
    image = np.arange(12, dtype=np.uint8).reshape(3, 4, 1)
    kind, _, data = render.picture(image).partition(",")
    assert kind == "data:image/png;base64"
    read = np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))
    np.testing.assert_array_equal(read, image[..., 0])


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (render.points(0.0123), "+1.23"),
        (render.points(-0.0123), "−1.23"),
        (render.percent(0.9942), "99.42%"),
        (render.count(1234), "1,234"),
        (render.count(58.333), "58.3"),
        (render.some([1, 2, 3], 2), "1, 2 and 1 more"),
        (render.some([1, 2], 2), "1, 2"),
        (render.listed(["a"]), "a"),
        (render.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_figures_are_written_as_people_read_them(shown: str, expected: str) -> None:
    """Differences have a sign, counts have commas, lists end in words."""
    assert shown == expected
