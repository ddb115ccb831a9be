import json
import re
import subprocess
from itertools import pairwise
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import recall_score

from pipeline import paths, report
from pipeline.data import save_split
from pipeline.predictions import collect
from pipeline.report import compare_pairs, describe_commit, made_in, summarise
from pipeline.results import Result
from tests.browser import open_page
from tests.conftest import (
    assert_one_clear_line,
    edit_params,
    environment,
    make_images,
    no_parts,
    run_stage,
)
from tests.test_predictions import TABLE

LABELS = [2, 2, 2]  # test images of each class in TABLE
SETTINGS = report.Report(surest_mistakes=2)


def make_result(
    variant: str, errors: float, predictions: pd.DataFrame = TABLE, seeds: int = 1
) -> Result:
    curve = pd.DataFrame(
        {"seed": 0, "epoch": [1.0, 2.0], "loss": [0.5, 0.25], "accuracy": [0.75, 0.875]}
    )
    several = {"accuracy_deviation": 0.0123} if seeds > 1 else {}
    return Result(
        variant,
        training={
            "seeds": list(range(seeds)), "parameters": 12345, "epochs": 3.64, "seconds": 95.0,
            "images_per_second": 321.4, "precision": "float32", "device": "CPU (Some)",
            "versions": {"tensorflow": "2", "keras": "3"},
        },
        metrics={
            "n": 6, "errors": errors, "accuracy": 1 - errors / 6, "accuracy_low": 0.2,
            "accuracy_high": 0.9, "nll": 0.12345, "ece": 0.01, **several,
            "evaluation": {
                "precision": "bfloat16", "chunk_size": 7, "peak_memory_mb": 12.3,
                "images_per_second": 1000.0,
            },
        },
        predictions=collect([predictions]),
        training_curve=curve,
        validation_curve=curve,
        reliability=pd.DataFrame(
            {"seed": 0, "confidence": [0.5, 0.9], "accuracy": [0.5, 1.0], "images": [2, 4]}
        ),
        footprint=pd.DataFrame({"chunk_size": [1, 6], "peak_memory_mb": [2.5, 10.0]}),
    )  # fmt: skip


def misread(count: int, images: int = 200) -> pd.DataFrame:
    """Return predictions of which the first `count` are wrong."""
    wrong = np.arange(images) < count
    return pd.DataFrame(
        {
            "seed": 0, "index": range(images), "label": 0, "prediction": wrong.astype(int),
            "confidence": 0.9,
        }
    )  # fmt: skip


def test_the_most_accurate_variant_comes_first() -> None:
    """Variants stand side by side, the most accurate one first."""
    best, other = report.variant_rows([make_result("worse", 3), make_result("better", 2)])
    assert best[:5] == ["better", "66.67%", "20.00% – 90.00%", "2", "0.1235"]
    assert best[6:] == [
        "12,345", "3.64 epochs, 1 min 35 s", "321", "1,000", "12 MB in chunks of 7",
    ]  # fmt: skip
    assert other[0] == "worse"


def test_several_seeds_are_told_with_their_deviation() -> None:
    """A mean over seeds is told with the deviation and the number of seeds."""
    row = report.variant_rows([make_result("net", 2.3333, seeds=3)])[0]
    assert row[1] == "61.11% ± 1.23, 3 seeds"
    assert row[3] == "2.3"


def test_the_verdict_says_what_is_real() -> None:
    """The sentence names the best variant, what it is better than, and what it is not."""
    results = [
        make_result("poor", 60, misread(60)),
        make_result("good", 10, misread(10)),
        make_result("fair", 12, misread(12)),
    ]
    told = summarise(results, compare_pairs(results))
    assert told.startswith("good makes the fewest errors, 10 of 6 (")
    assert told.endswith(
        "; it is better than poor; there is no evidence of a difference from fair."
    )


def test_the_verdict_warns_of_a_variant_that_learnt_nothing() -> None:
    """The metrics' warning, which evaluation gives where chance does as well, is told."""
    chance, good = make_result("blind", 5, misread(5)), make_result("good", 1, misread(1))
    chance.metrics["warning"] = "no better than chance with seed 0"
    told = summarise([chance, good], compare_pairs([chance, good]))
    assert told.endswith(". Warning: blind is no better than chance with seed 0.")
    assert told.count("Warning") == 1


def test_the_precisions_are_told() -> None:
    """The report says in what, and on what, the variants were trained and evaluated."""
    assert made_in([make_result("a", 1), make_result("b", 2)]) == (
        "Trained in float32 on the CPU (Some); evaluated in bfloat16."
    )


def test_every_pair_is_compared_and_corrected_for_their_number() -> None:
    """Three variants are three pairs, with p-values by Holm."""
    results = [make_result(str(count), count, misread(count)) for count in (10, 16, 60)]
    pairs = compare_pairs(results)
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("10", "16"), ("10", "60"), ("16", "60"),
    ]  # fmt: skip
    alone = [pair.paired.difference.p for pair in pairs]
    assert alone[0] == pytest.approx(2 / 2**6)
    assert [pair.p for pair in pairs] == pytest.approx([alone[0], 3 * alone[1], 2 * alone[2]])
    rows = report.pair_rows(pairs)
    assert rows[0] == [
        "16", "10", "−3.00", rows[0][3], "0", "6", f"{alone[0]:.2g}", "worse",
    ]  # fmt: skip


def test_a_variant_without_mistakes_says_so() -> None:
    """A variant without mistakes has no table of them."""
    right = TABLE.assign(prediction=TABLE["label"])
    results = [make_result("perfect", 0, right)]
    text = report.write_markdown("tiny", results, [], 3, SETTINGS)
    assert "No mistake." in text
    assert "surest" not in text


def write_result(result: Result) -> None:
    def csv(table: pd.DataFrame) -> str:
        return table.to_csv(index=False)

    variant = result.variant
    for path, content in (
        (paths.training("tiny", variant), json.dumps(result.training)),
        (paths.metrics("tiny", variant), json.dumps(result.metrics)),
        (paths.mistakes("tiny", variant), csv(result.predictions.mistakes)),
        (paths.history("tiny", variant, "train"), csv(result.training_curve)),
        (paths.history("tiny", variant, "validation"), csv(result.validation_curve)),
        (paths.reliability("tiny", variant), csv(result.reliability)),
        (paths.footprint("tiny", variant), csv(result.footprint)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def evaluated(project: Path) -> Path:
    write_result(make_result("tiny_conv", 3))
    write_result(make_result("tiny_dense", 3))
    save_split(paths.prepared("tiny", "test"), make_images(6, seed=2))
    paths.summary("tiny").parent.mkdir(parents=True)
    paths.summary("tiny").write_text(
        json.dumps({"sha256": {"train_images": "0123abcd"}, "images_per_class": {"test": LABELS}})
    )
    return project


def test_the_stage_writes_report_and_page(evaluated: Path) -> None:
    """Both name the test set, the variants and the hardware; twice gives the same bytes."""
    report.main("tiny")
    texts = [paths.report("tiny").read_text(), paths.page("tiny").read_text()]
    assert texts[0].startswith("# tiny: 6 test images\n")
    for text in texts:
        for name in ("tiny_conv", "tiny_dense", "float32 on the CPU (Some)", "no evidence"):
            assert name in text
    report.main("tiny")
    assert [paths.report("tiny").read_text(), paths.page("tiny").read_text()] == texts


def test_the_markdown_shows_no_picture_and_the_page_does(evaluated: Path) -> None:
    """Pictures of the data are in the page, which git does not keep, and nowhere else."""
    report.main("tiny")
    assert "data:image" not in paths.report("tiny").read_text()
    assert paths.page("tiny").read_text().count('<img src="data:image/png;base64,') == 6


def test_the_page_says_what_made_it(evaluated: Path) -> None:
    """Parameters, hashes of the data, versions and hardware are in the page."""
    report.main("tiny")
    page = paths.page("tiny").read_text()
    for text in ("0123abcd  train_images", "tensorflow 2, keras 3", "learning_rate: 0.01",
                 "memory_budget_mb: 128", "unknown: this is no git repository"):  # fmt: skip
        assert text in page


def test_the_pages_recall_is_scikit_learns(evaluated: Path) -> None:
    """Recall of each class is scikit-learn's."""
    report.main("tiny")
    rows = re.findall(r'<tr><th scope="row">\d</th><td style="--heat:0">2</td>.*?>([\d.]+)%</td>',
                      paths.page("tiny").read_text())  # fmt: skip
    expected = recall_score(TABLE["label"], TABLE["prediction"], average=None)
    assert [float(share) for share in rows] == pytest.approx(100 * expected, abs=0.005)


def test_the_whole_test_set_at_once_is_measured_or_foretold() -> None:
    """Where the whole set was not tried, its memory is extrapolated, and that is said."""
    result = make_result("net", 3)
    assert report._footprint_row(result)[2] == "10 MB"
    partial = pd.DataFrame({"chunk_size": [1, 3], "peak_memory_mb": [2.5, 6.0]})
    row = report._footprint_row(Result(**{**vars(result), "footprint": partial}))
    assert row[2].startswith("about 12 MB by extrapolation; not tried")


def test_the_commit_is_told_with_what_differs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The page names the commit, and the code and parameters that differ from it."""
    monkeypatch.chdir(tmp_path)

    def git(*command: str) -> str:
        return subprocess.run(
            ["git", *command], env=environment(), capture_output=True, text=True, check=True
        ).stdout.strip()

    git("init", "-q")
    (tmp_path / "params.yaml").write_text("a: 1\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    assert describe_commit() == git("rev-parse", "HEAD")
    (tmp_path / "params.yaml").write_text("a: 2\n")
    (tmp_path / "README.md").write_text("other\n")
    assert describe_commit().endswith(", with changes in params.yaml")


@pytest.mark.slow
@pytest.mark.parametrize(("width", "scheme"), [(1200, "light"), (1200, "dark"), (390, "light")])
def test_the_page_opens_offline_at_any_width(evaluated: Path, width: int, scheme: str) -> None:
    """In a real browser: no console message, no request, no sideways scroll, each image decoded."""
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
    """On paper, A4 less its margins, nothing is cut off, and dark is not dark."""
    report.main("tiny")
    with open_page(paths.page("tiny"), 720, "dark") as page:
        page.print_on_screen()
        assert page.ask("document.documentElement.scrollWidth") <= 720
        ground = page.ask("getComputedStyle(document.documentElement).getPropertyValue('--ground')")
        assert ground.strip() == "#ffffff"


@pytest.mark.slow
def test_a_screen_reader_finds_its_way(evaluated: Path) -> None:
    """Each chart has a name, each table a caption and headers, and headings skip no level."""
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
    """A missing result is named, with the remedy, and no report is written."""
    paths.metrics("tiny", "tiny_dense").unlink()
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=evaluated), "metrics/tiny/tiny_dense.json: cannot be read"
    )
    assert not paths.report("tiny").exists()
    assert not paths.page("tiny").exists()
    assert no_parts(evaluated)


def test_a_wrong_setting_is_refused(evaluated: Path) -> None:
    """A setting that makes no sense is refused."""
    edit_params(
        evaluated / "params.yaml", lambda params: params["report"].update(surest_mistakes=0)
    )
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=evaluated),
        "report.surest_mistakes: input should be greater than or equal to 1",
    )
