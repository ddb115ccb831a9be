from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.metrics import confusion_matrix, recall_score

from pipeline.datasets.splits import SplitReader, save_split
from pipeline.page import view
from pipeline.page.settings import DatasetReport
from pipeline.page.view import MEMBER_HEADER, NOTHING, PAIR_HEADER, RESULT_HEADER, SPEED_HEADER
from pipeline.scores.comparison import BestMember, compare_pairs, compare_with_members
from pipeline.scores.ensembles import Ensemble
from pipeline.scores.load import Result
from pipeline.scores.significance import images_interval, seeds_interval
from tests.helpers import make_images
from tests.scores.helpers import LABELS, TABLE, make_ensemble, make_result, misread


@pytest.fixture
def images(tmp_path: Path) -> Iterator[SplitReader]:
    save_split(tmp_path, make_images(6, seed=2))
    with SplitReader(tmp_path) as reader:
        yield reader


MakeView = Callable[..., dict[str, Any]]


@pytest.fixture
def make_view(images: SplitReader) -> MakeView:
    """Return a function that makes the view of some results."""

    def make(
        *results: Result,
        shown: int = 2,
        classes: Sequence[str] = ("0", "1", "2"),
        members: Sequence[BestMember] = (),
        known: DatasetReport | None = None,
        **summary: object,
    ) -> dict[str, Any]:
        settings = {
            "report": {"mistakes_shown": shown},
            "evaluate": {"memory_budget_mb": 128.0},
            "train": {"seeds": [0]},
        }
        common: dict[str, Any] = {
            "images": {"validation": 30}, "images_per_class": {"test": LABELS},
            "sha256": {"train_images": "0123abcd"},
        }  # fmt: skip
        return view.make_view(
            "tiny", results, compare_pairs(results), members, common | summary, classes,
            known or DatasetReport(), settings, images,
        )  # fmt: skip

    return make


def row_of(header: tuple[str, ...], row: list[str]) -> dict[str, str]:
    return dict(zip(header, row, strict=True))


def test_the_most_accurate_variant_comes_first(make_view: MakeView) -> None:
    """In every part of the report the most accurate variant comes first."""
    content = make_view(make_result("worse", 3), make_result("better", 2))
    names = ["better", "worse"]
    assert [row[0] for row in content["result_rows"]] == names
    assert [row[0] for row in content["speed_rows"]] == names
    for part in ("confusion", "heats", "mistakes", "seeds"):
        assert list(content[part]) == names


def test_a_result_has_its_interval_and_size() -> None:
    """A row has accuracy with its interval, errors, loss, calibration, parameters and epochs."""
    result = make_result("net", 2)
    low, high = images_interval(result.metrics)
    assert row_of(RESULT_HEADER, view.result_rows([result])[0]) == {
        "variant": "net",
        "accuracy": "66.67%",
        "95 % over images": f"{low:.2%} – {high:.2%}",
        "95 % over seeds": "–",
        "errors": "2",
        "loss": "0.1235 → 0.1000",
        "calibration error": "0.0100",
        "parameters": "12,345",
        "epochs": "3.64",
    }


def test_several_seeds_are_shown_with_their_deviation() -> None:
    """A mean over seeds is shown with its deviation, the number of seeds, and both intervals."""
    several = pd.concat([TABLE.assign(seed=seed) for seed in range(3)])
    result = make_result("net", 2.3333, several, seeds=3)
    row = row_of(RESULT_HEADER, view.result_rows([result])[0])
    assert row["accuracy"] == "61.11% ± 1.23, 3 seeds"
    assert row["errors"] == "2.3"
    low, high = images_interval(result.metrics)
    assert row["95 % over images"] == f"{low:.2%} – {high:.2%}"
    interval = seeds_interval(result.metrics)
    assert interval is not None
    assert row["95 % over seeds"] == f"{interval[0]:.2%} – {interval[1]:.2%}"


def test_an_ensemble_has_no_size_and_no_epochs() -> None:
    """An ensemble is not trained: its row has no parameters and no epochs, and one interval."""
    row = row_of(RESULT_HEADER, view.result_rows([make_ensemble("both", 1)])[0])
    assert (row["parameters"], row["epochs"], row["95 % over seeds"]) == (NOTHING,) * 3
    assert row["accuracy"] == "83.33%"


def test_an_ensemble_is_shown_next_to_its_best_member() -> None:
    """A row has the best member, both sides' images, and the verdict of the test."""
    members = [make_result("net", 20, misread(20)), make_result("other", 40, misread(40))]
    listed = Ensemble.model_validate(
        {"members": [{"variant": name, "seeds": [0]} for name in ("net", "other")]}
    )
    found = compare_with_members(make_ensemble("both", 10, misread(10)), listed, members)
    row = row_of(MEMBER_HEADER, view.member_rows([found])[0])
    assert row.pop("95 % interval").startswith("+")
    assert row == {
        "ensemble": "both",
        "models": "2",
        "its best": "net, seed 0",
        "errors of it": "20",
        "difference, points": "+5.00",
        "only together right": "10",
        "only it is right": "0",
        "p": f"{2 / 2**10:.2g}",
        "verdict": "better",
    }


def test_parts_have_the_errors_of_scikit_learn() -> None:
    """Each part has its errors, images and accuracy; label errors are left out of the last one."""
    known = DatasetReport(parts={"first": [0, 4], "last": [4, 6]}, label_errors=[1, 4])
    header = ("variant", *view.parts_of(known, 6))
    assert header == ("variant", "first", "last", "without 2 confirmed label errors")
    rows = view.part_rows([make_result("net", 3)], known)
    right = TABLE["label"] == TABLE["prediction"]
    shares = [right[:4].mean(), right[4:].mean(), right.drop([1, 4]).mean()]
    assert row_of(header, rows[0]) == {
        "variant": "net",
        "first": f"2 of 4 ({shares[0]:.2%})",
        "last": f"1 of 2 ({shares[1]:.2%})",
        "without 2 confirmed label errors": f"2 of 4 ({shares[2]:.2%})",
    }
    assert view.part_rows([make_result("net", 3)], DatasetReport()) == []


def test_the_errors_of_a_part_are_the_mean_over_seeds() -> None:
    """With several seeds a part has the mean of their errors."""
    several = pd.concat([TABLE, TABLE.assign(seed=1, prediction=TABLE["label"])])
    result = make_result("net", 1.5, several, seeds=2)
    known = DatasetReport(parts={"first": [0, 4]})
    assert view.part_rows([result], known) == [["net", "1 of 4 (75.00%)"]]
    known = DatasetReport(parts={"end": [5, 6]})
    assert view.part_rows([result], known) == [["net", "0.5 of 1 (50.00%)"]]


def test_a_part_ends_with_the_test_set() -> None:
    """A part that reaches beyond the test set ends with it."""
    known = DatasetReport(parts={"last": [4, 100]})
    assert view.part_rows([make_result("net", 3)], known) == [["net", "1 of 2 (50.00%)"]]


def test_label_errors_beyond_the_test_set_do_not_count() -> None:
    """Of a smaller test set only the label errors that are in it are left out."""
    known = DatasetReport(label_errors=[1, 600])
    row = view.part_rows([make_result("net", 3)], known)[0]
    assert row[1] == "2 of 5 (60.00%)"


def test_a_part_beyond_the_test_set_is_no_division_by_zero() -> None:
    """A part that the test set does not have is said to be empty."""
    known = DatasetReport(parts={"later": [6, 9]})
    assert view.part_rows([make_result("net", 3)], known)[0][0] == "net"


def test_each_pair_of_label_and_prediction_has_its_pictures(make_view: MakeView) -> None:
    """Behind each number off the diagonal are its images, each once, the most confident first."""
    several = pd.concat([TABLE, TABLE.assign(seed=1, confidence=0.95)])
    content = make_view(make_result("net", 3, several, seeds=2))
    cells = content["cells"]["net"]
    matrix = confusion_matrix(TABLE["label"], TABLE["prediction"])
    off = {(row, column) for row, column in np.argwhere(matrix).tolist() if row != column}
    assert set(cells) == off
    for (label, prediction), images in cells.items():
        where = (TABLE["label"] == label) & (TABLE["prediction"] == prediction)
        assert sorted(each["index"] for each in images) == TABLE["index"][where].tolist()
        assert all(each["picture"].startswith("data:image/png;base64,") for each in images)


def test_label_errors_are_marked(make_view: MakeView) -> None:
    """A mistake whose label is known to be wrong is marked as such."""
    content = make_view(make_result("net", 3), known=DatasetReport(label_errors=[3]), shown=3)
    marks = {each["index"]: each["label_error"] for each in content["mistakes"]["net"]}
    assert marks == {3: True, 1: False, 5: False}


def test_classes_have_their_names(make_view: MakeView) -> None:
    """The classes' names are in the content, in their order."""
    names = ["cat", "dog", "cow"]
    assert make_view(make_result("net", 3), classes=names)["classes"] == names


def test_an_ensemble_is_in_no_table_of_measurements(make_view: MakeView) -> None:
    """An ensemble is in results, differences and confusion, and not in curves, speed or memory."""
    content = make_view(make_result("net", 3), make_ensemble("both", 2))
    assert [row[0] for row in content["result_rows"]] == ["both", "net"]
    assert [row[0] for row in content["speed_rows"]] == ["net"]
    assert list(content["confusion"]) == ["both", "net"]
    assert {row[0] for row in content["pair_rows"]} == {"net"}
    assert "both: expected calibration error" in content["calibration"]["label"]
    assert "both" not in content["curves"][0]["label"]
    assert content["curves"][1]["label"].endswith("at the end net 87.50%")


def test_without_validation_there_is_no_curve_of_it(make_view: MakeView) -> None:
    """If all images were trained on, only the training's curve is shown."""
    result = make_result("net", 3)
    trained = replace(result, validation_curve=result.validation_curve[:0])
    content = make_view(trained, images={"validation": 0})
    assert [chart["label"].partition(" over ")[0] for chart in content["curves"]] == [
        "Chart of training loss"
    ]


def test_speed_and_memory_are_those_of_the_profile() -> None:
    """A row has the speeds, the time that the training's samples take at them, and the memory."""
    assert row_of(SPEED_HEADER, view.speed_rows([make_result("net", 2)])[0]) == {
        "variant": "net",
        "training": "1 min 35 s",
        "training images/s": "321",
        "evaluation images/s": "1,000",
        "evaluation memory": "12 MB in chunks of 7",
        "in one batch": "10 MB",
    }


def test_unmeasured_memory_is_extrapolated_and_said_so() -> None:
    """If the whole test set was not measured, its memory is extrapolated, and marked as such."""
    partial = pd.DataFrame({"images": [1, 3], "peak_memory_mb": [2.5, 6.0]})
    result = replace(make_result("net", 3), memory=partial)
    row = row_of(SPEED_HEADER, view.speed_rows([result])[0])
    assert row["in one batch"] == "about 12 MB (extrapolated; not enough memory to measure)"


def test_a_pair_has_its_difference_and_verdict() -> None:
    """A row has the difference with its interval, the images that decide, p-value and verdict."""
    pairs = compare_pairs([make_result(str(count), count, misread(count)) for count in (10, 16)])
    row = row_of(PAIR_HEADER, view.pair_rows(pairs)[0])
    interval = row.pop("95 % interval")
    assert row == {
        "variant": "16",
        "compared with": "10",
        "difference, points": "−3.00",
        "only it is right": "0",
        "only the other is right": "6",
        "p": f"{2 / 2**6:.2g}",
        "verdict": "worse",
    }
    assert interval.startswith("−5.")
    assert " … −0." in interval


def test_the_summary_names_what_is_significant() -> None:
    """The summary names the best variant, those it is better than, and those it may equal."""
    results = [
        make_result("poor", 60, misread(60)),
        make_result("good", 10, misread(10)),
        make_result("fair", 12, misread(12)),
    ]
    told = view.summarise(results, compare_pairs(results))
    assert told.startswith("good makes the fewest errors, 10 of 6 (")
    assert told.endswith(
        "; it is better than poor; there is no evidence of a difference from fair."
    )


def test_the_summary_tells_the_number_of_seeds() -> None:
    """An accuracy that is a mean over seeds is said to be one."""
    several = make_result("net", 3, pd.concat([TABLE, TABLE.assign(seed=1)]), seeds=2)
    assert "(50.00% accuracy, mean of 2 seeds)" in view.summarise([several], [])


def test_the_summary_warns_of_a_variant_that_learnt_nothing() -> None:
    """The warning that evaluation gives to a variant no better than chance is in the summary."""
    chance, good = make_result("blind", 5, misread(5)), make_result("good", 1, misread(1))
    chance.metrics["warning"] = "no better than chance with seed 0"
    told = view.summarise([chance, good], compare_pairs([chance, good]))
    assert told.endswith(". Warning: blind is no better than chance with seed 0.")
    assert told.count("Warning") == 1


def test_precisions_and_devices_are_told_once() -> None:
    """The notes name each precision, and each device with its versions, once."""
    results = [make_result("a", 1), make_result("b", 2)]
    assert view.computed_in(results) == "Trained in float32, evaluated in mixed_bfloat16."
    assert view.measured_on(results).startswith(
        "Measured on the CPU (Some), with tensorflow 2, keras 3; "
    )
    results[1].training["precision"] = "mixed_bfloat16"
    results[1].profile["device"] = "GPU (Other)"
    assert view.computed_in(results).startswith("Trained in float32 and mixed_bfloat16, ")
    assert "keras 3 and the GPU (Other), with" in view.measured_on(results)


def test_confusion_and_recall_equal_scikit_learns(make_view: MakeView) -> None:
    """Confusion matrix and recall equal scikit-learn's, with the number of images per class."""
    content = make_view(make_result("net", 3))
    expected = confusion_matrix(TABLE["label"], TABLE["prediction"])
    np.testing.assert_array_equal(content["confusion"]["net"], expected)
    recall = recall_score(TABLE["label"], TABLE["prediction"], average=None)
    assert [label for label, _, _ in content["recall_rows"]] == [0, 1, 2]
    assert [images for _, images, _ in content["recall_rows"]] == ["2", "2", "2"]
    assert [shares[0] for _, _, shares in content["recall_rows"]] == pytest.approx(recall)


def test_a_class_without_test_images_has_no_recall(make_view: MakeView) -> None:
    """A class without test images has no recall, rather than a division by zero."""
    counts = {"test": [*LABELS, 0]}
    content = make_view(make_result("net", 3), classes=[*"0123"], images_per_class=counts)
    rows = content["recall_rows"]
    assert rows[3] == (3, "0", [None])


def test_colours_follow_the_mistakes(make_view: MakeView) -> None:
    """The more often two classes are confused, the deeper the colour, from 0 to 1."""
    heats = np.array(make_view(make_result("net", 3))["heats"]["net"])
    matrix = confusion_matrix(TABLE["label"], TABLE["prediction"])
    off = ~np.eye(3, dtype=bool)
    assert heats[off & (matrix > 0)].tolist() == [1.0] * 3
    assert not heats[off & (matrix == 0)].any()


@pytest.mark.parametrize("shown", [0, 1, 2, 10])
def test_the_most_confident_mistakes_are_pictured(make_view: MakeView, shown: int) -> None:
    """As many mistakes as asked for are shown, the most confident first, with their pictures."""
    mistakes = make_view(make_result("net", 3), shown=shown)["mistakes"]["net"]
    assert [each["index"] for each in mistakes] == [3, 1, 5][:shown]
    assert [each["confidence"] for each in mistakes] == ["99.00%", "80.00%", "80.00%"][:shown]
    assert all(each["picture"].startswith("data:image/png;base64,") for each in mistakes)


def test_the_origin_of_the_results_is_told(make_view: MakeView) -> None:
    """The hashes of the data and the parameters as YAML are in the report."""
    origin = make_view(make_result("net", 3))["origin"]
    assert origin["Data, SHA-256"] == "0123abcd  train_images"
    assert "memory_budget_mb: 128.0" in origin["Parameters"]


def test_charts_describe_their_values(make_view: MakeView) -> None:
    """Each chart is described for screen readers, with the values of every variant."""
    content = make_view(make_result("a", 1), make_result("b", 2))
    loss, accuracy = (chart["label"] for chart in content["curves"])
    assert loss.endswith("training loss over epochs: at the end a 0.2500, b 0.2500")
    assert accuracy.endswith("validation accuracy over epochs: at the end a 87.50%, b 87.50%")
    assert "a: expected calibration error 0.0100" in content["calibration"]["label"]
    assert "the budget of 128 MB" in content["memory"]["caption"]
