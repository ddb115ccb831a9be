"""The popovers behind the numbers of a confusion matrix, in a real browser."""

import base64
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from pipeline import report
from pipeline.core import paths
from pipeline.datasets.splits import save_split
from pipeline.page.view import CELL_PICTURES
from tests.browser import LocalPage, open_page
from tests.helpers import edit_params, make_images
from tests.scores.helpers import make_result, write_result

N = 60
CROWDED = 30  # images of one pair, more than a cell shows


def predictions() -> pd.DataFrame:
    """Return predictions: thirty images of 0 taken for 1, two of 1 for 2, the others right."""
    random = np.random.default_rng(0)
    labels = np.array([0] * 40 + [1] * 10 + [2] * 10)
    predicted = labels.copy()
    predicted[:CROWDED] = 1
    predicted[40:42] = 2
    return pd.DataFrame(
        {
            "seed": 0, "index": range(N), "label": labels, "prediction": predicted,
            "confidence": (0.5 + random.permutation(N) / 200).round(4),
        }
    )  # fmt: skip


@pytest.fixture
def reported(project: Path) -> Path:
    write_result(make_result("tiny_conv", 3, predictions()))
    write_result(make_result("tiny_dense", 3, predictions()))
    save_split(paths.prepared("tiny", "test"), make_images(N, seed=2))
    summary = {
        "images": {"train": 90, "validation": 30, "test": N},
        "images_per_class": {"test": [40, 10, 10]},
        "sha256": {"train_images": "0123abcd"},
    }
    paths.summary("tiny").write_text(json.dumps(summary))
    edit_params(
        paths.PARAMS,
        lambda params: params["datasets"]["tiny"].update(report={"label_errors": [40]}),
    )
    report.main("tiny")
    return project


@pytest.fixture
def page(reported: Path) -> Iterator[LocalPage]:
    with open_page(paths.page("tiny"), 1200, "light") as opened:
        yield opened


def expected(label: int, prediction: int) -> pd.DataFrame:
    """Return the images of a pair, the most confident first."""
    table = predictions()
    pair = table[(table["label"] == label) & (table["prediction"] == prediction)]
    return pair.sort_values("confidence", ascending=False)


def opened(page: LocalPage) -> list[str]:
    """Return the names of the popovers that are open."""
    found: list[str] = page.ask(
        "[...document.querySelectorAll('[popover]')].filter(each => "
        "each.matches(':popover-open')).map(each => each.id)"
    )
    return found


def cell(page: LocalPage, name: str) -> Any:
    return page.browser.find_element(By.CSS_SELECTOR, f"td button[popovertarget='{name}']")


def pictures(page: LocalPage, name: str) -> list[dict[str, str]]:
    """Return the alternative texts, sources and words of a popover's pictures."""
    found: list[dict[str, str]] = page.ask(
        f"[...document.querySelectorAll('#{name} li')].map(each => ({{"
        "alt: each.querySelector('img').alt, source: each.querySelector('img').src, "
        "text: each.querySelector('span').innerText}))"
    )
    return found


@pytest.mark.slow
def test_a_click_shows_the_images_of_a_pair(page: LocalPage) -> None:
    """A click on a number opens the images of that pair, the most confident first."""
    name = "tiny_conv-1-2"
    assert opened(page) == []
    assert cell(page, name).text == "2"
    cell(page, name).click()
    assert opened(page) == [name]
    shown = pictures(page, name)
    rows = expected(1, 2)
    assert [each["alt"] for each in shown] == [f"Test image {index}" for index in rows["index"]]
    images = make_images(N, seed=2).images
    for each, row in zip(shown, rows.to_dict("records"), strict=True):
        assert each["text"].startswith(f"{row['confidence']:.2%}")
        assert ("whose label is wrong" in each["text"]) == (row["index"] == 40)
        pixels = Image.open(io.BytesIO(base64.b64decode(each["source"].partition(",")[2])))
        np.testing.assert_array_equal(np.asarray(pixels), images[row["index"], ..., 0])
    heading = page.browser.find_element(By.CSS_SELECTOR, f"#{name} h3").text
    assert heading == "tiny_conv: 1, classified as 2"
    assert page.messages() == []


@pytest.mark.slow
def test_a_crowded_pair_shows_the_most_confident(page: LocalPage) -> None:
    """Of more images than a cell shows, the most confident are there."""
    cell(page, "tiny_dense-0-1").click()
    assert opened(page) == ["tiny_dense-0-1"]
    shown = [each["alt"] for each in pictures(page, "tiny_dense-0-1")]
    first = expected(0, 1)["index"][:CELL_PICTURES]
    assert shown == [f"Test image {index}" for index in first]


@pytest.mark.slow
def test_the_keyboard_opens_and_closes(page: LocalPage) -> None:
    """Enter on a number opens its images; Escape and the button close them again."""
    button = cell(page, "tiny_conv-0-1")
    assert button.accessible_name == "30 of 0 classified as 1: show them"
    button.send_keys(Keys.ENTER)
    assert opened(page) == ["tiny_conv-0-1"]
    page.browser.switch_to.active_element.send_keys(Keys.ESCAPE)
    assert opened(page) == []
    button.send_keys(" ")
    assert opened(page) == ["tiny_conv-0-1"]
    page.browser.find_element(By.CSS_SELECTOR, "#tiny_conv-0-1 > button").click()
    assert opened(page) == []


@pytest.mark.slow
def test_one_pair_is_open_at_a_time(page: LocalPage) -> None:
    """A click beside the images closes them."""
    cell(page, "tiny_conv-1-2").click()
    page.browser.find_element(By.TAG_NAME, "h1").click()
    assert opened(page) == []


@pytest.mark.slow
def test_print_shows_plain_numbers(page: LocalPage) -> None:
    """Printed, the numbers look like the others, and no images of a pair are shown."""
    page.print_on_screen()
    cells = page.ask(
        "[...document.querySelectorAll('.matrix button')].map(each => "
        "[each.textContent, getComputedStyle(each).textDecorationLine, "
        "getComputedStyle(each).borderTopWidth])"
    )
    assert cells == [["30", "none", "0px"], ["2", "none", "0px"]] * 2
    assert page.ask(
        "[...document.querySelectorAll('.which')]"
        ".every(each => getComputedStyle(each).display === 'none')"
    )


@pytest.mark.slow
def test_on_a_phone_the_images_fit(reported: Path) -> None:
    """On a phone the images of a pair are no wider than the screen, and can be scrolled."""
    with open_page(paths.page("tiny"), 360, "dark") as page:
        page.ask("document.getElementById('tiny_conv-0-1').showPopover()")
        box = page.ask(
            "(b => [b.left, b.right, b.bottom])"
            "(document.getElementById('tiny_conv-0-1').getBoundingClientRect())"
        )
        assert box[0] >= 0
        assert box[1] <= 360
        assert box[2] <= page.ask("window.innerHeight")


def test_only_numbers_off_the_diagonal_open_something(reported: Path) -> None:
    """There is a button for each pair with images, none for right answers, and no script."""
    text = paths.page("tiny").read_text()
    for variant in ("tiny_conv", "tiny_dense"):
        for pair in ("0-1", "1-2"):
            assert text.count(f'<div popover id="{variant}-{pair}"') == 1
            assert text.count(f'<button popovertarget="{variant}-{pair}" aria-label') == 1
    assert text.count("<div popover") == text.count('popovertargetaction="hide"') == 4
    assert text.count("<button popovertarget") == 8
    assert "<script" not in text
    assert " onclick" not in text
