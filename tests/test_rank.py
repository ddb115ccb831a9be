from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.stats import ttest_ind

from pipeline import rank
from pipeline.core import paths
from tests.helpers import assert_one_clear_line, edit_params, run_python, run_stage

VARIANTS = ("tiny_conv", "tiny_dense", "lenet5")
LOSSES = {
    "tiny_conv": [0.031, 0.034, 0.035],
    "tiny_dense": [0.011, 0.012, 0.014],
    "lenet5": [0.0126],
}


def write_curve(variant: str, losses: list[float]) -> None:
    """Write a validation curve of two epochs for each seed, which ends with these losses."""
    rows = [
        f"{seed},{10 * epoch},{epoch},{loss * 3 / epoch**2:.6g},{1 - loss / epoch:.6g}"
        for seed, loss in enumerate(losses)
        for epoch in (1, 2)
    ]
    lines = ["seed,step,epoch,loss,accuracy", *rows]
    path = paths.curve("tiny", variant, "validation")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(f"{line}\n" for line in lines))


@pytest.fixture
def selected(project: Path) -> Path:
    """A project whose selection has three recipes for the tiny data set."""

    def change(params: Any) -> None:
        params["run"]["datasets"] = ["digits"]
        params["selection"] = {"datasets": ["tiny"], "variants": [*VARIANTS], "ensembles": []}

    edit_params(paths.PARAMS, change)
    return project


@pytest.fixture
def trained(selected: Path) -> Path:
    for variant, losses in LOSSES.items():
        write_curve(variant, losses)
    return selected


def table_of(printed: str) -> list[dict[str, str]]:
    rows = [line[2:-2].split(" | ") for line in printed.splitlines() if line.startswith("|")]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]


def test_the_lowest_loss_comes_first(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Recipes are listed by their loss at the end, with deviation, accuracy and seeds."""
    rank.main()
    printed = capsys.readouterr().out
    assert printed.startswith("tiny: mean validation loss over seeds, the lowest first\n")
    assert "not trained" not in printed
    rows = table_of(printed)
    assert [row["variant"] for row in rows] == ["tiny_dense", "lenet5", "tiny_conv"]
    assert [row["seeds"] for row in rows] == ["3", "1", "3"]
    ends = {name: np.array(losses) * 3 / 4 for name, losses in LOSSES.items()}
    assert [row["validation loss, nats"] for row in rows] == [
        f"{ends['tiny_dense'].mean():.5f} ± {ends['tiny_dense'].std(ddof=1):.5f}",
        f"{ends['lenet5'].mean():.5f}",
        f"{ends['tiny_conv'].mean():.5f} ± {ends['tiny_conv'].std(ddof=1):.5f}",
    ]
    accuracies = 1 - np.array(LOSSES["tiny_dense"]) / 2
    assert rows[0]["validation accuracy"] == (
        f"{accuracies.mean():.2%} ± {100 * accuracies.std(ddof=1):.2f}"
    )


def test_each_recipe_is_tested_against_the_best(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe with several seeds has Welch's test against the best; one with one seed has none."""
    rank.main()
    best, once, other = table_of(capsys.readouterr().out)
    columns = ("behind the best", "95 % interval", "p", "verdict")
    assert [best[column] for column in columns] == ["–"] * 4
    assert [once[column] for column in columns] == ["–"] * 4
    first, second = (np.array(LOSSES[name]) * 3 / 4 for name in ("tiny_dense", "tiny_conv"))
    test = ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval()
    assert [other[column] for column in columns] == [
        f"{second.mean() - first.mean():+.5f}", f"{low:+.5f} … {high:+.5f}",
        f"{test.pvalue:.2g}", "worse",
    ]  # fmt: skip


def test_a_small_difference_is_no_evidence(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A recipe that is behind by less than its seeds differ is not called worse."""
    write_curve("tiny_conv", [0.011, 0.013, 0.016])
    rank.main()
    rows = {row["variant"]: row for row in table_of(capsys.readouterr().out)}
    assert rows["tiny_conv"]["verdict"] == "no evidence of a difference"


def test_recipes_that_are_not_trained_are_named(
    selected: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The trained recipes are ranked, and the others named."""
    write_curve("tiny_dense", LOSSES["tiny_dense"])
    rank.main()
    printed = capsys.readouterr().out
    assert [row["variant"] for row in table_of(printed)] == ["tiny_dense"]
    assert printed.splitlines()[-1] == "not trained: tiny_conv, lenet5"


def test_without_any_training_one_clear_line_names_the_remedy(selected: Path) -> None:
    """If nothing is trained, one line says how to train it."""
    assert_one_clear_line(
        run_stage("rank", cwd=selected), "tiny: no recipe is trained; train them: make selection"
    )


def test_a_damaged_curve_is_one_clear_line(trained: Path) -> None:
    """A curve that cannot be read is named with the remedy."""
    paths.curve("tiny", "lenet5", "validation").write_text("seed,epoch\n0,1\n")
    assert_one_clear_line(
        run_stage("rank", cwd=trained),
        "results/tiny/lenet5/curve_validation.csv: cannot be read",
        "run the stage that writes it again",
    )


def test_a_training_without_validation_cannot_be_ranked(trained: Path) -> None:
    """A curve without rows, of a data set without validation images, is one clear line."""
    write_curve("lenet5", [])
    assert_one_clear_line(run_stage("rank", cwd=trained), "lenet5")


def test_the_command_looks_at_nothing_but_validation_curves(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The curves alone are enough: no model, no test set and no other result is needed."""
    kept = {paths.curve("tiny", variant, "validation") for variant in VARIANTS}
    assert {path for path in Path("results").rglob("*") if path.is_file()} == kept
    rank.main()
    assert len(table_of(capsys.readouterr().out)) == 3


def test_the_command_needs_no_tensorflow() -> None:
    """The command imports neither TensorFlow nor Keras, so it answers at once."""
    code = """
import sys
import pipeline.rank
print(sorted({"keras", "tensorflow"} & set(sys.modules)))
"""
    assert run_python(code) == "[]\n"
