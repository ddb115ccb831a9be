import json
from pathlib import Path

import pytest

from pipeline.page.comparisons import (
    FORMATS,
    HEADER,
    as_json,
    as_markdown,
    as_page,
    as_text,
    short,
    table_rows,
)
from pipeline.scores.comparison import Outcome, compare_revisions
from pipeline.scores.revisions import Revisions
from tests.browser import open_page
from tests.history import save

pytestmark = pytest.mark.slow  # they run DVC and git in processes of their own


def compare(root: Path, *names: str) -> Outcome:
    return compare_revisions(Revisions(root), names)


def test_all_formats_have_the_same_verdicts(history: Path) -> None:
    """Text, Markdown and JSON have the same verdicts, and JSON has every image that flipped."""
    outcome = compare(history, "base", "regression")
    title = "Against base: 1 worse, 1 no evidence of a difference (2 comparisons"
    assert as_text(outcome).startswith(title)
    assert as_markdown(outcome).startswith(title)
    rows = [line for line in as_markdown(outcome).splitlines() if line.startswith("| digits")]
    assert rows[0].endswith("| worse |")
    assert rows[1].endswith("| no evidence of a difference |")
    entries = json.loads(as_json(outcome))
    assert entries[0]["verdict"] == "worse"
    assert len(entries[0]["broken"]) > 10
    assert set(FORMATS) == {"text", "markdown", "json", "html"}


def test_a_row_has_both_accuracies_and_the_images_that_flipped(history: Path) -> None:
    """A row has both accuracies, the change with its interval, and what was fixed and broken."""
    outcome = compare(history, "base", "regression")
    row = dict(zip(HEADER, table_rows(outcome.comparisons)[0], strict=True))
    assert row["accuracy"] == "98.00% → 91.00%"
    assert row["change, points"] == "−7.00"
    assert int(row["broken"]) - int(row["fixed"]) == 70


def test_details_tell_what_changed_and_which_images(history: Path) -> None:
    """The changed parameters and the first ten images that flipped are listed for each variant."""
    told = as_text(compare(history, "base", "regression")).splitlines()[-1]
    assert told.startswith("digits / net at regression: changed: variants.net.wrong: 20 → 90; ")
    assert told.endswith(" and 61 more")


def test_missing_pairing_and_variants_are_told(history: Path) -> None:
    """The reason for not pairing images is given, and so are variants that only one revision has."""
    told = as_markdown(compare(history, "base", "smaller"))
    assert "worse (not paired) |" in told
    assert "- digits / net at smaller: not paired: base has 1,000 test images, smaller" in told
    (history / "results/digits/net/metrics.json").unlink()
    save(history, "gone")
    assert as_markdown(compare(history, "smaller", "gone")).endswith(
        "\n- digits / net: not at gone"
    )


def test_a_variant_of_several_seeds_against_one_is_told(history: Path) -> None:
    """If only one side has several seeds, the table says that the first ones are compared."""
    path = history / "results/digits/net/metrics.json"
    metrics = json.loads(path.read_text()) | {"by_seed": {}, "accuracy_deviation": 0.004}
    path.write_text(json.dumps(metrics))
    told = as_text(compare(history, "smaller", "workspace"))
    assert "82.00% → 82.00% ± 0.40" in told
    assert "no evidence of a difference (first seeds)" in told


def test_a_page_shows_each_metric_over_the_revisions(history: Path) -> None:
    """The page has the table, and a chart of each metric with every revision."""
    revisions = ["base", "seed", "regression"]
    page = as_page(compare(history, *revisions))
    for metric in ("test accuracy", "evaluation, images/s", "evaluation memory, MB"):
        assert page.count(f'<figure><div role="img" aria-label="Chart of {metric} over') == 1
    assert 'class="text worse"' in page
    for revision in revisions:
        assert f">{revision}</text>" in page


def test_a_page_shows_the_speeds_of_version_0_1(history: Path) -> None:
    """Speed and memory of version 0.1's commits are in the same charts as today's."""
    page = as_page(compare(history, "old", "base"))
    assert "net at old 1500, other at old 1500, net at base 2000" in page
    assert "net at old 75, other at old 75, net at base 70" in page


def test_a_page_tells_what_could_not_be_compared(history: Path) -> None:
    """The page lists the revisions that could not be read."""
    page = as_page(compare(history, "base", "nosuch", "seed"))
    assert "What could not be compared" in page
    assert "nosuch: is not a revision" in page


def test_commits_are_shortened() -> None:
    """A full hash is shortened in titles and charts, and a name is not."""
    assert short("0123456789abcdef0123456789abcdef01234567") == "012345678"
    assert short("a-branch-with-a-long-name") == "a-branch-with-a-long-name"


def test_the_page_opens_offline(history: Path) -> None:
    """In a real browser the page logs nothing, requests nothing, and fits a phone's width."""
    target = history / "page.html"
    target.write_text(as_page(compare(history, "base", "regression")))
    with open_page(target, 390, "dark") as page:
        assert page.messages() == []
        assert page.requests() == [target.as_uri()]
        assert page.ask("document.documentElement.scrollWidth") <= 390
