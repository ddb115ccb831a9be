import json
from pathlib import Path

import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix

from pipeline import paths, report
from pipeline.errors import DataError
from pipeline.report import Result
from tests.conftest import assert_one_clear_line, edit_params, run_stage

PREDICTIONS = pd.DataFrame(
    {
        "index": range(6),
        "label": [0, 1, 2, 0, 1, 2],
        "prediction": [0, 2, 2, 1, 1, 0],
        "confidence": [0.9, 0.8, 0.7, 0.99, 0.6, 0.8],
    }
)


def make_result(variant: str, errors: int, predictions: pd.DataFrame = PREDICTIONS) -> Result:
    return Result(
        variant,
        training={
            "parameters": 12345, "epochs": 3.64, "seconds": 95.0, "images_per_second": 321.4,
            "precision": "float32", "device": "CPU (Some)",
        },
        metrics={
            "n": 6, "errors": errors, "accuracy": 1 - errors / 6, "accuracy_low": 0.2,
            "accuracy_high": 0.9, "nll": 0.12345, "ece": 0.01,
            "evaluation": {"chunk_size": 7, "peak_memory_mb": 12.3, "images_per_second": 1000.0},
        },
        predictions=predictions,
    )  # fmt: skip


def test_the_most_accurate_variant_comes_first() -> None:
    """Variants stand side by side, the most accurate one first."""
    lines = report.compare([make_result("worse", 3), make_result("better", 2)])
    assert lines[2].startswith("| better | 66.67% | 20.00% – 90.00% | 2 | 0.1235 |")
    assert "12,345 | 3.64 epochs, 1 min 35 s | 321 | 1,000 | 12 MB in chunks of 7 |" in lines[2]
    assert lines[3].startswith("| worse | 50.00% |")


def test_the_confusion_matrix_is_scikit_learns() -> None:
    """The confusion matrix is scikit-learn's, with classes that never occur."""
    lines = report.confusion_matrix(PREDICTIONS, 4)
    rows = [[int(cell) for cell in line.strip("| ").split(" | ")[1:]] for line in lines[2:]]
    expected = confusion_matrix(PREDICTIONS["label"], PREDICTIONS["prediction"], labels=range(4))
    assert rows == expected.tolist()


def test_the_surest_mistakes_come_first() -> None:
    """Mistakes are ordered by confidence, then by index, and cut off."""
    lines = report.surest_mistakes(PREDICTIONS, 2)
    assert lines[2:] == ["| 3 | 0 | 1 | 99.00% |", "| 1 | 1 | 2 | 80.00% |"]


def test_a_variant_without_mistakes_says_so() -> None:
    """A variant without mistakes has no table of them."""
    right = PREDICTIONS.assign(prediction=PREDICTIONS["label"])
    text = report.write_report("tiny", [make_result("perfect", 0, right)], 3, 5)
    assert "No mistake." in text
    assert "surest" not in text


def write_result(result: Result) -> None:
    for path, content in (
        (paths.training("tiny", result.variant), json.dumps(result.training)),
        (paths.metrics("tiny", result.variant), json.dumps(result.metrics)),
        (paths.predictions("tiny", result.variant), result.predictions.to_csv(index=False)),
    ):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


@pytest.fixture
def evaluated(project: Path) -> Path:
    write_result(make_result("tiny_conv", 3))
    write_result(make_result("tiny_dense", 3))
    return project


def test_the_stage_writes_the_report(evaluated: Path) -> None:
    """The report names the test set, the variants and the hardware; twice gives the same bytes."""
    report.main("tiny")
    text = paths.report("tiny").read_text()
    assert text.startswith("# tiny: 6 test images\n")
    assert "## tiny_conv" in text
    assert "## tiny_dense" in text
    assert "float32 on the CPU (Some)" in text
    report.main("tiny")
    assert paths.report("tiny").read_text() == text


def test_a_missing_result_is_one_clear_line(evaluated: Path) -> None:
    """A missing result is named, with the remedy, and no report is written."""
    paths.metrics("tiny", "tiny_dense").unlink()
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=evaluated), "metrics/tiny/tiny_dense.json: cannot be read"
    )
    assert not paths.report("tiny").exists()


@pytest.mark.parametrize("content", ["", "index,label\n1,2\n", "a\n\x00", "index,label,prediction"])
def test_damaged_predictions_are_refused(evaluated: Path, content: str) -> None:
    """Predictions that are no such table are refused by name."""
    paths.predictions("tiny", "tiny_conv").write_text(content)
    with pytest.raises(DataError, match=r"tiny_conv\.csv: cannot be read"):
        report.read_result("tiny", "tiny_conv")


def test_a_wrong_setting_is_refused(evaluated: Path) -> None:
    """A setting that makes no sense is refused."""
    edit_params(
        evaluated / "params.yaml", lambda params: params["report"].update(surest_mistakes=0)
    )
    assert_one_clear_line(
        run_stage("report", "tiny", cwd=evaluated), "report.surest_mistakes: input should be"
    )
