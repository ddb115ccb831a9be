import subprocess
import sys
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests

from pipeline.compare import main
from pipeline.scores.comparison import compare_revisions
from pipeline.scores.revisions import Revisions
from tests.browser import open_page
from tests.helpers import edit_params, environment, make_repository, run
from tests.history import save, set_params

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own


@pytest.mark.parametrize(
    "arguments", [["base", "base"], ["base", "seed", "--tolerance", "nan"], ["workspace"]]
)
def test_a_call_that_compares_nothing_is_rejected(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """A revision compared with itself, or a tolerance that is not a number, is rejected."""
    with pytest.raises(SystemExit):
        main(arguments)
    assert "expected" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [[], ["HEAD"], ["HEAD", "workspace"]])
def test_the_workspace_is_compared_with_head_by_default(
    history: Path, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    """Without arguments the workspace is compared with HEAD, and a single revision with it."""
    set_params(history, images=500, seed=0, wrong=20)
    run("dvc", "repro", "-q", cwd=history)
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("Against HEAD: 1 better, 1 no evidence of a difference")
    assert "workspace" in printed


@pytest.mark.parametrize("form", ["text", "markdown", "json", "html"])
def test_a_comparison_is_printed_or_written(
    history: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """Each format is printed, or written to a file if one is given."""
    target = history / "new/comparison"
    assert main(["base", "regression", "--format", form]) == 0
    printed = capsys.readouterr().out
    assert main(["base", "regression", "--format", form, "--output", str(target)]) == 0
    assert target.read_text() == printed
    assert capsys.readouterr().out == ""
    assert "worse" in printed


@pytest.mark.parametrize(
    ("tolerance", "revision", "code"),
    [("0", "regression", 1), ("10", "regression", 0), ("0", "seed", 0)],
)
def test_fail_if_worse_fails_only_beyond_the_tolerance(
    history: Path, capsys: pytest.CaptureFixture[str], tolerance: str, revision: str, code: int
) -> None:
    """A significant loss beyond the tolerance fails; a smaller one or another seed does not."""
    assert main(["base", revision, "--fail-if-worse", "--tolerance", tolerance]) == code
    told = capsys.readouterr().err
    assert ("error: worse than base: digits / net at regression" in told) == bool(code)


def test_an_unreadable_revision_is_one_line_and_the_rest_is_compared(
    history: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line names each unreadable revision, the exit code is 1, and the others are compared."""
    (history / "params.yaml").write_text("variants: [")
    save(history, "bad")
    assert main(["base", "bad", "regression", "nosuch"]) == 1
    told = capsys.readouterr()
    first, second = told.err.splitlines()
    assert first.startswith("error: bad: params.yaml is not valid YAML")
    assert second.startswith("error: nosuch: is not a revision")
    assert "regression" in told.out


def test_an_unwritable_file_is_one_line(history: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """If the output cannot be written, one line says so."""
    (history / "folder").write_text("a file where a folder should be")
    assert main(["base", "seed", "--output", "folder/comparison.md"]) == 1
    assert "error: folder/comparison.md: cannot be written" in capsys.readouterr().err


def test_a_folder_without_dvc_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Outside a repository one line suggests a fix, without a traceback."""
    monkeypatch.chdir(tmp_path)
    assert main([]) == 1
    assert "is not a DVC repository" in capsys.readouterr().err


def test_a_real_history_is_judged_as_statsmodels_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In real trainings another seed is no evidence, and a tenth of the training is worse."""
    root = make_repository(
        tmp_path / "project",
        lambda params: params["run"].update(datasets=["digits"], variants=["lenet5"]),
    )
    monkeypatch.chdir(root)
    predictions = {}
    for tag, seeds, epochs in (("base", [0], 24), ("seed", [1], 24), ("tenth", [0], 2)):

        def change(params: Any, seeds: list[int] = seeds, epochs: int = epochs) -> None:
            params["train"]["seeds"] = seeds
            params["datasets"]["digits"]["train"]["epochs"] = epochs

        edit_params(root / "params.yaml", change)
        run("dvc", "repro", cwd=root)
        predictions[tag] = pd.read_csv(root / "predictions/digits/lenet5.csv")
        save(root, tag)

    outcome = compare_revisions(Revisions(root), ["base", "seed", "tenth"])
    assert (outcome.errors, outcome.notes) == ([], [])
    comparisons = outcome.comparisons
    assert {each.revision: each.verdict for each in comparisons} == {
        "seed": "no evidence of a difference",
        "tenth": "worse",
    }
    right = {tag: each["label"] == each["prediction"] for tag, each in predictions.items()}
    p_values = []
    for each in comparisons:
        table = pd.crosstab(right["base"], right[each.revision])
        assert len(each.fixed) == table.loc[False, True]
        assert len(each.broken) == table.loc[True, False]
        p_values.append(mcnemar(table, exact=True).pvalue)
        assert each.difference.p == pytest.approx(min(1, p_values[-1]))
    adjusted = multipletests(p_values, method="holm")[1]
    assert [each.adjusted_p for each in comparisons] == pytest.approx(list(adjusted))
    assert [each.changed for each in comparisons] == [
        ["train.seeds: [0] → [1]"], ["datasets.digits.train.epochs: 24 → 2"],
    ]  # fmt: skip
    assert main(["base", "seed", "--fail-if-worse"]) == 0
    assert main(["base", "tenth", "--fail-if-worse"]) == 1
    assert main(["base", "tenth", "--fail-if-worse", "--tolerance", "50"]) == 0
    report = root / "reports/digits.html"
    assert report.stat().st_size < 3e6
    with open_page(report, 1200, "light") as page:
        assert page.messages() == []
        assert page.requests() == [report.as_uri()]


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
def test_any_terminal_can_show_a_comparison(history: Path, encoding: str) -> None:
    """Where the terminal's encoding lacks a character, a question mark stands for it."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline.compare", "base", "regression"], cwd=history,
        env=environment(PYTHONIOENCODING=encoding), capture_output=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert b"?" in done.stdout
    assert b"Traceback" not in done.stderr


def test_a_reader_may_have_enough(history: Path) -> None:
    """A pipe that is closed, as by head, ends the command without a word."""
    with subprocess.Popen(
        [sys.executable, "-m", "pipeline.compare", "--format", "json", "base", "regression"],
        cwd=history, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
