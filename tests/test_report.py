import json
import re
from itertools import pairwise
from pathlib import Path

import pytest
from sklearn.metrics import recall_score

from pipeline import report
from pipeline.core import paths
from pipeline.datasets.splits import save_split
from tests.browser import open_page
from tests.helpers import assert_one_clear_line, edit_params, make_images, no_parts, run_stage
from tests.scores.helpers import LABELS, TABLE, make_result, write_result


def write_summary(labels: list[int]) -> None:
    paths.summary("tiny").parent.mkdir(parents=True, exist_ok=True)
    summary = {
        "classes": len(labels),
        "images_per_class": {"test": labels},
        "sha256": {"train_images": "0123abcd"},
    }
    paths.summary("tiny").write_text(json.dumps(summary))


@pytest.fixture
def evaluated(project: Path) -> Path:
    write_result(make_result("tiny_conv", 3))
    write_result(make_result("tiny_dense", 3))
    save_split(paths.prepared("tiny", "test"), make_images(6, seed=2))
    write_summary(LABELS)
    return project


def test_the_stage_writes_report_and_page(evaluated: Path) -> None:
    """Both name test set, variants, precision and device, and have the same bytes each time."""
    report.main("tiny")
    texts = [paths.report("tiny").read_text(), paths.page("tiny").read_text()]
    assert texts[0].startswith("# tiny: 6 test images\n")
    for text in texts:
        for name in (
            "tiny_conv", "tiny_dense", "Trained in float32, evaluated in mixed_bfloat16",
            "Measured on the CPU (Some), with tensorflow 2, keras 3", "no evidence",
        ):  # fmt: skip
            assert name in text
    report.main("tiny")
    assert [paths.report("tiny").read_text(), paths.page("tiny").read_text()] == texts


def test_the_markdown_is_well_formed(evaluated: Path) -> None:
    """Each table in the Markdown has as many cells in each row as in its header."""
    report.main("tiny")
    text = paths.report("tiny").read_text()
    tables = re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE)
    assert len(tables) == 3 + 2 * 2  # results, differences, speed; confusion, mistakes
    for table in tables:
        assert len({line.count(" | ") for line in table.splitlines()}) == 1
    assert not re.search(r"\n{3}", text)
    assert text.endswith("|\n") or text.endswith("|")


def test_pictures_of_the_data_are_in_the_page_only(evaluated: Path) -> None:
    """Pictures of the data are in the page, which git does not keep, and not in the Markdown."""
    report.main("tiny")
    assert "data:image" not in paths.report("tiny").read_text()
    assert paths.page("tiny").read_text().count('<img src="data:image/png;base64,') == 6


def test_the_page_tells_what_made_it(evaluated: Path) -> None:
    """Parameters and hashes of the data are in the page."""
    report.main("tiny")
    page = paths.page("tiny").read_text()
    for text in ("0123abcd  train_images", "learning_rate: 0.01", "memory_budget_mb: 128"):
        assert text in page
    assert "lenet5" not in page


def test_the_pages_recall_is_scikit_learns(evaluated: Path) -> None:
    """The recall of each class in the page equals scikit-learn's."""
    report.main("tiny")
    rows = re.findall(r'<tr><th scope="row">\d</th><td style="--heat:0">2</td>.*?>([\d.]+)%</td>',
                      paths.page("tiny").read_text())  # fmt: skip
    expected = recall_score(TABLE["label"], TABLE["prediction"], average=None)
    assert [float(share) for share in rows] == pytest.approx(100 * expected, abs=0.005)


def test_a_class_without_test_images_has_a_dash(evaluated: Path) -> None:
    """The recall of a class without test images is a dash."""
    write_summary([*LABELS, 0])
    report.main("tiny")
    row = paths.page("tiny").read_text().partition('<td style="--heat:0">0</td>')[2]
    assert row.startswith('<td style="--heat:0">–</td><td style="--heat:0">–</td></tr>')


def test_a_variant_without_mistakes_says_so(evaluated: Path) -> None:
    """A variant without mistakes has no table or pictures of them."""
    right = TABLE.assign(prediction=TABLE["label"])
    write_result(make_result("tiny_dense", 0, right))
    report.main("tiny")
    text = paths.report("tiny").read_text()
    assert text.count("No mistakes.") == 1
    assert text.count("The most confident mistakes:") == 1
    assert paths.page("tiny").read_text().count("<p>No mistakes.</p>") == 1


def test_mistakes_that_are_not_shown_are_not_denied(evaluated: Path) -> None:
    """If no mistakes are to be shown, the report does not say that there are none."""
    edit_params(evaluated / "params.yaml", lambda params: params["report"].update(mistakes_shown=0))
    report.main("tiny")
    for path in (paths.report("tiny"), paths.page("tiny")):
        assert "No mistakes." not in path.read_text()
        assert "<img" not in path.read_text()


def test_one_variant_alone_has_no_differences(evaluated: Path) -> None:
    """A report of one variant has no section of differences."""
    edit_params(
        evaluated / "params.yaml", lambda params: params["run"].update(variants=["tiny_conv"])
    )
    report.main("tiny")
    assert "Differences" not in paths.report("tiny").read_text()
    page = paths.page("tiny").read_text()
    assert "Are they different?" not in page
    assert "#differences" not in page


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_page_opens_offline_at_any_width(evaluated: Path, width: int, scheme: str) -> None:
    """In a real browser the page logs nothing, requests nothing, fits, and shows each image."""
    report.main("tiny")
    assert paths.page("tiny").stat().st_size < 3e6
    with open_page(paths.page("tiny"), width, scheme) as page:
        assert page.messages() == []
        assert page.requests() == [paths.page("tiny").absolute().as_uri()]
        assert page.ask("document.documentElement.scrollWidth") <= width
        assert page.ask("[...document.images].every(i => i.naturalWidth > 0 && i.alt)")
        ground = page.ask("getComputedStyle(document.body).backgroundColor")
        assert ground == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 22, 26)")
        line = "getComputedStyle(document.querySelector('.mark-line path')).stroke"
        assert page.ask(line) == ("rgb(11, 92, 173)" if scheme == "light" else "rgb(108, 178, 255)")


@pytest.mark.slow
def test_the_page_prints_on_a_sheet(evaluated: Path) -> None:
    """Printed on A4, nothing is cut off, and the background is white."""
    report.main("tiny")
    with open_page(paths.page("tiny"), 720, "dark") as page:
        page.print_on_screen()
        assert page.ask("document.documentElement.scrollWidth") <= 720
        ground = page.ask("getComputedStyle(document.documentElement).getPropertyValue('--ground')")
        assert ground.strip() == "#ffffff"


@pytest.mark.slow
def test_the_page_is_accessible(evaluated: Path) -> None:
    """Charts have names, tables have captions and headers, and headings skip no level."""
    report.main("tiny")
    with open_page(paths.page("tiny"), 1200, "light") as page:
        charts = page.ask("[...document.querySelectorAll('[role=img]')].map(e => e.ariaLabel)")
        assert len(charts) == 4
        assert all(name.startswith("Chart of ") for name in charts)
        assert page.ask("document.documentElement.lang") == "en"
        assert page.ask(
            "[...document.querySelectorAll('table')]"
            ".every(t => t.caption && t.querySelector('thead th[scope=col]'))"
        )
        levels = page.ask("[...document.querySelectorAll('h1,h2,h3')].map(e => +e.tagName[1])")
        assert levels[0] == 1
        assert all(after <= before + 1 for before, after in pairwise(levels))
        assert page.ask(
            "[...document.querySelectorAll('a[href^=\"#\"]')]"
            ".every(a => document.getElementById(a.hash.slice(1)))"
        )
        assert page.ask("new Set([...document.querySelectorAll('[id]')].map(e => e.id)).size") == (
            page.ask("document.querySelectorAll('[id]').length")
        )


def test_a_missing_result_is_one_clear_line(evaluated: Path) -> None:
    """A missing result is named with the remedy, and no report is written."""
    paths.metrics("tiny", "tiny_dense").unlink()
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=evaluated),
        "results/tiny/tiny_dense/metrics.json: cannot be read",
        "run the stage that writes it again",
    )
    assert not paths.report("tiny").exists()
    assert not paths.page("tiny").exists()
    assert no_parts(evaluated)


def test_a_wrong_setting_is_rejected(evaluated: Path) -> None:
    """A negative number of mistakes is rejected."""
    edit_params(
        evaluated / "params.yaml", lambda params: params["report"].update(mistakes_shown=-1)
    )
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=evaluated),
        "report.mistakes_shown: input should be greater than or equal to 0",
    )
