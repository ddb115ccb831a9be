import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import softmax
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from pipeline.scores.metrics import CALIBRATION_BINS, Totals, over_seeds

N, CLASSES = 500, 7


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, N)
    logits = random.normal(size=(N, CLASSES)).astype(np.float32)
    logits[np.arange(N), labels] += random.choice([0, 3], N)
    return logits, labels


def probabilities_of(logits: np.ndarray) -> np.ndarray:
    probabilities: np.ndarray = softmax(logits.astype(np.float64), axis=1)
    return probabilities


def total(
    logits: np.ndarray, labels: np.ndarray, chunk: int = N, temperature: float = 1.0
) -> Totals:
    totals = Totals(CLASSES, temperature)
    for start in range(0, N, chunk):
        totals.add(logits[start : start + chunk], labels[start : start + chunk])
    return totals


def test_metrics_equal_scikit_learns(answers: tuple[np.ndarray, np.ndarray]) -> None:
    """Accuracies, errors, confusion matrix and loss equal scikit-learn's."""
    logits, labels = answers
    totals = total(logits, labels)
    predictions = logits.argmax(axis=1)
    got = totals.metrics()
    assert got["accuracy"] == oracle.accuracy_score(labels, predictions)
    assert got["balanced_accuracy"] == pytest.approx(
        oracle.balanced_accuracy_score(labels, predictions), abs=1e-8
    )
    assert got["errors"] == oracle.zero_one_loss(labels, predictions, normalize=False)
    np.testing.assert_array_equal(
        totals.confusion, oracle.confusion_matrix(labels, predictions, labels=range(CLASSES))
    )
    probabilities = probabilities_of(logits)
    expected = oracle.log_loss(labels, probabilities, labels=range(CLASSES))
    assert got["nll"] == pytest.approx(expected, abs=1e-6)


def test_the_balanced_accuracy_is_that_of_the_classes_that_have_images() -> None:
    """Each class counts alike, however many images it has; one without images does not count."""
    labels = np.array([0] * 90 + [1] * 10)
    predictions = np.array([0] * 90 + [1] * 5 + [2] * 5)
    totals = Totals(4)
    totals.add(np.eye(4)[predictions], labels)
    expected = oracle.recall_score(labels, predictions, labels=[0, 1], average="macro")
    assert totals.balanced_accuracy == pytest.approx(expected) == pytest.approx(0.75)
    assert totals.metrics()["accuracy"] == 0.95


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrated_figures_are_those_of_scaled_logits(
    answers: tuple[np.ndarray, np.ndarray], temperature: float
) -> None:
    """Divided by the temperature, the logits have the figures of logits that are that small."""
    logits, labels = answers
    plain, scaled = total(logits, labels), total(logits, labels, temperature=temperature)
    smaller = total(logits.astype(np.float64) / temperature, labels)
    got = scaled.metrics()
    assert got["temperature"] == temperature
    for name in ("accuracy", "balanced_accuracy", "errors", "nll", "ece"):
        assert got[name] == plain.metrics()[name]
    for name in ("nll", "ece"):
        assert got[f"calibrated_{name}"] == smaller.metrics()[name]
    assert list(scaled.calibrated.curve()) == list(smaller.raw.curve())
    assert list(scaled.raw.curve()) == list(plain.raw.curve())


def test_the_calibration_error_is_the_papers(answers: tuple[np.ndarray, np.ndarray]) -> None:
    """The calibration error is the paper's weighted sum over bins, computed bin by bin."""
    logits, labels = answers
    probabilities = probabilities_of(logits)
    confidence, right = probabilities.max(axis=1), logits.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (confidence > low) & (confidence <= low + 1 / CALIBRATION_BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert total(logits, labels).metrics()["ece"] == pytest.approx(expected, abs=1e-6)


def test_the_calibration_curve_equals_scikit_learns() -> None:
    """For two classes, the bins' confidence and accuracy are scikit-learn's calibration curve."""
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(N, 2)), random.integers(0, 2, N)
    totals = Totals(2)
    totals.add(logits, labels)
    confidence = probabilities_of(logits).max(axis=1)
    right = logits.argmax(axis=1) == labels
    accuracies, confidences = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    bins = list(totals.raw.curve())
    assert [bin_[0] for bin_ in bins] == pytest.approx(list(confidences))
    assert [bin_[1] for bin_ in bins] == pytest.approx(list(accuracies))
    assert sum(bin_[2] for bin_ in bins) == N


def figures(errors: int) -> dict[str, float | int]:
    totals = Totals(2)
    labels = np.zeros(100, np.int64)
    logits = np.where(np.arange(100)[:, None] < errors, [[0.0, 1.0]], [[1.0, 0.0]])
    totals.add(logits, labels)
    return totals.metrics()


def test_one_seed_is_reported_as_it_is() -> None:
    """With one seed the figures are those of its training."""
    assert over_seeds({3: figures(5)}) == figures(5)


def test_several_seeds_are_reported_with_mean_and_deviation() -> None:
    """With several seeds there are their mean, their deviation, and the figures of each."""
    together = over_seeds({0: figures(4), 1: figures(5), 2: figures(9)})
    assert together["n"] == 100
    assert together["errors"] == 6
    assert together["accuracy"] == pytest.approx(0.94)
    assert together["accuracy_deviation"] == pytest.approx(np.std([0.96, 0.95, 0.91], ddof=1))
    assert together["by_seed"]["2"]["errors"] == 9
    assert together["balanced_accuracy"] == together["accuracy"]  # all images are of one class
    assert set(together) == {*figures(4), "accuracy_deviation", "by_seed"}
    assert together["nll"] == pytest.approx(
        np.mean([figures(errors)["nll"] for errors in (4, 5, 9)]), abs=1e-6
    )


@settings(max_examples=30)
@given(chunk=st.integers(1, N))
def test_any_chunk_size_gives_the_same_metrics(
    answers: tuple[np.ndarray, np.ndarray], chunk: int
) -> None:
    """Chunks of any size give identical counts and the same metrics."""
    whole, pieces = total(*answers), total(*answers, chunk=chunk)
    np.testing.assert_array_equal(whole.confusion, pieces.confusion)
    np.testing.assert_array_equal(whole.raw.images, pieces.raw.images)
    np.testing.assert_array_equal(whole.calibrated.images, pieces.calibrated.images)
    assert pieces.metrics() == pytest.approx(whole.metrics(), abs=2e-6)


def test_extreme_logits_stay_finite() -> None:
    """Logits of ±10⁴ give finite metrics, which JSON can hold."""
    totals = Totals(2)
    totals.add(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), np.array([0, 0]))
    metrics = totals.metrics()
    assert metrics["nll"] == pytest.approx(1e4)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_predictions_and_confidences_are_returned() -> None:
    """Adding a chunk returns the most likely class and its calibrated probability."""
    predictions, confidences = Totals(2).add(np.log([[1.0, 3.0]]), np.array([0]))
    assert predictions.tolist() == [1]
    assert confidences.tolist() == pytest.approx([0.75])
    predictions, confidences = Totals(2, 0.5).add(np.log([[1.0, 3.0]]), np.array([0]))
    assert predictions.tolist() == [1]
    assert confidences.tolist() == pytest.approx([0.9])


@pytest.mark.parametrize(("right", "is_chance"), [(4, True), (5, False)])
def test_chance_is_the_accuracy_of_the_most_frequent_class(right: int, is_chance: bool) -> None:
    """Of 4 + 3 + 3 images, four correct ones are no better than chance, and five are."""
    labels = np.array([0] * 4 + [1] * 3 + [2] * 3)
    predictions = np.where(np.arange(10) < right, labels, (labels + 1) % 3)
    totals = Totals(3)
    totals.add(np.eye(3)[predictions] * 5, labels)
    assert totals.errors == 10 - right
    assert totals.is_chance is is_chance
