import json
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import recall_score

from pipeline import report
from pipeline.core import paths
from pipeline.datasets.splits import save_split
from tests.browser import open_page
from tests.helpers import assert_one_clear_line, edit_params, make_images, no_parts, run_stage
from tests.scores.helpers import LABELS, TABLE, make_ensemble, make_result, write_result


def write_summary(labels: list[int]) -> None:
    paths.summary("tiny").parent.mkdir(parents=True, exist_ok=True)
    summary = {
        "images": {"train": 90, "validation": 30, "test": sum(labels)},
        "images_per_class": {"test": labels},
        "sha256": {"train_images": "0123abcd"},
    }
    paths.summary("tiny").write_text(json.dumps(summary))


def set_dataset(**settings: object) -> None:
    edit_params(paths.PARAMS, lambda params: params["datasets"]["tiny"].update(settings))


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
    set_dataset(classes=4)
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
        assert "<img" not in path.read_text().partition("most confident mistakes")[2]


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


@pytest.fixture
def with_ensemble(evaluated: Path) -> Path:
    """An evaluated project with an ensemble of its two variants."""

    def change(params: Any) -> None:
        members = [{"variant": name, "seeds": [0]} for name in ("tiny_conv", "tiny_dense")]
        params["ensembles"] = {"both": {"members": members}}
        params["run"]["ensembles"] = ["both"]

    edit_params(paths.PARAMS, change)
    together = TABLE.assign(prediction=[0, 1, 2, 1, 1, 0])
    write_result(make_ensemble("both", 2, together))
    return evaluated


def tables_of(text: str) -> dict[str, list[dict[str, str]]]:
    """Return the rows of each Markdown table by its heading."""
    tables = {}
    for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:]:
        rows = [re.split(r" \| ", line[2:-2]) for line in part.splitlines() if line[:1] == "|"]
        named = [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
        tables[part.partition("\n")[0]] = named
    return tables


def test_an_ensemble_is_reported(with_ensemble: Path) -> None:
    """An ensemble is in the results, next to its best member, and not in the measurements."""
    report.main("tiny")
    tables = tables_of(paths.report("tiny").read_text())
    results = {row["variant"]: row for row in tables["tiny: 6 test images"]}
    assert list(results) == ["both", "tiny_conv", "tiny_dense"]
    assert (results["both"]["errors"], results["both"]["parameters"]) == ("2", "–")
    (members,) = tables["Ensembles"]
    assert (members["ensemble"], members["models"]) == ("both", "2")
    assert (members["its best"], members["errors of it"]) == ("tiny_conv, seed 0", "3")
    assert (members["only together right"], members["only it is right"]) == ("1", "0")
    assert members["verdict"] == "no evidence of a difference"
    assert [row["variant"] for row in tables["Speed and memory"]] == ["tiny_conv", "tiny_dense"]
    assert "both" in tables
    page = paths.page("tiny").read_text()
    assert page.count('<h2 id="ensembles">Ensembles</h2>') == 1
    assert "Each ensemble, compared with its best member" in page
    assert "members:" in page.partition("Parameters")[2]


def test_without_an_ensemble_there_is_no_such_section(evaluated: Path) -> None:
    """Neither ensembles nor parts have a section if there are none."""
    report.main("tiny")
    for path in (paths.report("tiny"), paths.page("tiny")):
        text = path.read_text()
        assert "Ensembles" not in text
        assert "Parts of the test set" not in text
        assert "wrong)" not in text
        assert "whose label is wrong" not in text


def test_parts_and_label_errors_are_reported(evaluated: Path) -> None:
    """Parts have a table, a second figure leaves label errors out, and these are marked."""
    set_dataset(report={"parts": {"the first four": [0, 4]}, "label_errors": [3]})
    report.main("tiny")
    text, page = paths.report("tiny").read_text(), paths.page("tiny").read_text()
    tables = tables_of(text)
    assert tables["Parts of the test set"][0] == {
        "variant": "tiny_conv",
        "the first four": "2 of 4 (50.00%)",
        "without 1 confirmed label errors": "2 of 5 (60.00%)",
    }
    assert page.count('<h2 id="parts">Parts of the test set</h2>') == 1
    assert text.count("| 3 | 0 (wrong) | 1 | 99.00% |") == text.count("(wrong)") == 2
    marked = "<small>image 3, whose label is wrong</small>"
    assert page.partition("most confident mistakes")[2].count(marked) == 2
    assert page.count("whose label is wrong") == page.count(marked)


def test_classes_are_called_by_their_names(evaluated: Path) -> None:
    """Where the classes have names, matrices, recall and mistakes have them."""
    set_dataset(classes=["cat", "dog", "<cow>"])
    report.main("tiny")
    text, page = paths.report("tiny").read_text(), paths.page("tiny").read_text()
    assert "| label | cat | dog | <cow> |" in text
    assert text.count("| **dog** | 0 | 1 | 1 |") == 2
    assert "| 3 | cat | dog | 99.00% |" in text
    assert page.count('<tr><th scope="row">cat</th>') == 3
    assert "cat, classified as <strong>dog</strong>" in page
    assert "&lt;cow&gt;" in page
    assert "<cow>" not in page


def test_a_training_without_validation_is_reported(evaluated: Path) -> None:
    """If all images were trained on, there is no curve of the validation."""
    summary = json.loads(paths.summary("tiny").read_text())
    summary["images"] |= {"train": 120, "validation": 0}
    paths.summary("tiny").write_text(json.dumps(summary))
    for variant in ("tiny_conv", "tiny_dense"):
        path = paths.curve("tiny", variant, "validation")
        path.write_text(path.read_text().splitlines()[0] + "\n")
    report.main("tiny")
    page = paths.page("tiny").read_text()
    assert "Chart of training loss" in page
    assert "Chart of validation accuracy" not in page


def test_a_missing_ensemble_is_one_clear_line(with_ensemble: Path) -> None:
    """An ensemble that is not evaluated is named with the remedy."""
    paths.metrics("tiny", "both").unlink()
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=with_ensemble),
        "results/tiny/both/metrics.json: cannot be read",
        "run the stage that writes it again",
    )


def test_a_data_set_of_the_record_is_reported_with_its_variants(evaluated: Path) -> None:
    """The variants of a report are those of the list that has the data set."""

    def change(params: Any) -> None:
        params["record"] = {"datasets": ["tiny"], "variants": ["tiny_dense"], "ensembles": []}
        params["run"]["datasets"] = ["digits"]

    edit_params(paths.PARAMS, change)
    report.main("tiny")
    text = paths.report("tiny").read_text()
    assert "tiny_dense" in text
    assert "tiny_conv" not in text


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
def test_the_page_is_accessible(with_ensemble: Path) -> None:
    """Charts have names, tables have captions and headers, and headings skip no level."""
    set_dataset(report={"parts": {"the first four": [0, 4]}, "label_errors": [3]})
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
