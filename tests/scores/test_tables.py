import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from pipeline.core import paths
from pipeline.scores import predictions
from pipeline.scores.load import load_json
from pipeline.scores.metrics import Totals
from pipeline.scores.tables import PredictionTables, calibration, summarise, write_scores
from tests.helpers import no_parts

LABELS = np.array([0, 1, 2, 1], np.uint8)
LOGITS = np.array([[3.0, 0, 0], [0, 0, 2], [0, 0, 4], [0, 1, 0]])


def totals(temperature: float = 1.0) -> Totals:
    added = Totals(3, temperature)
    added.add(LOGITS, LABELS)
    return added


def test_mistakes_are_in_both_tables(tmp_path: Path) -> None:
    """Every image has a row in the first table, and every mistake the same one in the second."""
    with PredictionTables(tmp_path / "all", tmp_path / "wrong") as tables:
        for start in (0, 3):
            part = slice(start, start + 3)
            tables.add(7, start, LABELS[part], LOGITS[part].argmax(axis=1), np.full(4, 0.5)[part])
    everything, wrong = (pd.read_csv(tmp_path / name) for name in ("all", "wrong"))
    assert list(everything.columns) == list(predictions.COLUMNS)
    assert everything["seed"].tolist() == [7] * 4
    assert everything["index"].tolist() == [0, 1, 2, 3]
    assert everything["label"].tolist() == LABELS.tolist()
    assert everything["prediction"].tolist() == [0, 2, 2, 1]
    pd.testing.assert_frame_equal(wrong, everything[1:2].reset_index(drop=True))


def test_an_evaluation_that_fails_leaves_no_table(tmp_path: Path) -> None:
    """After an error neither table is there, not even half of one."""
    with (
        pytest.raises(ZeroDivisionError),
        PredictionTables(tmp_path / "all", tmp_path / "wrong") as tables,
    ):
        tables.add(0, 0, LABELS, LOGITS.argmax(axis=1), np.zeros(4))
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_both_calibration_curves_have_all_images_of_each_seed() -> None:
    """Each seed has a curve before its temperature, marked 0, and one after it, marked 1."""
    table = pd.read_csv(io.StringIO(calibration({0: totals(), 5: totals(3.0)})))
    assert list(table.columns) == ["seed", "calibrated", "confidence", "accuracy", "images"]
    assert (table.groupby(["seed", "calibrated"])["images"].sum() == 4).all()
    curves = {key: part.drop(columns=["seed", "calibrated"]).to_numpy().tolist()
              for key, part in table.groupby(["seed", "calibrated"])}  # fmt: skip
    assert curves[0, 0] == curves[0, 1] == curves[5, 0] != curves[5, 1]
    mean = {
        key: np.average(part["confidence"], weights=part["images"])
        for key, part in table.groupby(["seed", "calibrated"])
    }
    assert mean[5, 1] < mean[5, 0]


def test_chance_is_warned_of_with_its_seeds() -> None:
    """Seeds that are no better than chance are named in a warning, which comes first."""
    blind = Totals(3)
    blind.add(np.zeros((4, 3)), LABELS)
    warned = summarise({0: totals(), 3: blind, 4: blind}, "float32")
    assert next(iter(warned)) == "warning"
    assert warned["warning"] == "no better than chance with seed 3, 4"
    assert "warning" not in summarise({0: totals()}, "float32")


def test_scores_are_written_and_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Metrics and curves get their places, and the metrics are printed."""
    monkeypatch.chdir(tmp_path)
    write_scores("tiny", "net", {0: totals(2.0)}, "float32")
    metrics = load_json(paths.metrics("tiny", "net"))
    assert metrics == {"precision": "float32", **totals(2.0).metrics()}
    assert paths.calibration("tiny", "net").read_text() == calibration({0: totals(2.0)})
    assert capsys.readouterr().out == f"tiny/net: {metrics}\n"
    assert no_parts(tmp_path)
