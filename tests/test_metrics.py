import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle
from sklearn.calibration import calibration_curve

from pipeline.metrics import (
    CALIBRATION_BINS,
    Totals,
    log_softmax,
    mean_interval,
    over_seeds,
    wilson_interval,
)

N, CLASSES = 500, 7


@pytest.fixture(scope="module")
def answers() -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    labels = random.integers(0, CLASSES, N)
    logits = random.normal(size=(N, CLASSES)).astype(np.float32)
    logits[np.arange(N), labels] += random.choice([0, 3], N)
    return logits, labels


def total(logits: np.ndarray, labels: np.ndarray, chunk: int = N) -> Totals:
    totals = Totals(CLASSES)
    for start in range(0, N, chunk):
        totals.add(logits[start : start + chunk], labels[start : start + chunk])
    return totals


def test_scikit_learn_agrees(answers: tuple[np.ndarray, np.ndarray]) -> None:
    """Accuracy, errors, confusion matrix and loss are scikit-learn's."""
    logits, labels = answers
    totals = total(logits, labels)
    predictions = logits.argmax(axis=1)
    got = totals.metrics()
    assert got["accuracy"] == oracle.accuracy_score(labels, predictions)
    assert got["errors"] == oracle.zero_one_loss(labels, predictions, normalize=False)
    np.testing.assert_array_equal(
        totals.confusion, oracle.confusion_matrix(labels, predictions, labels=range(CLASSES))
    )
    probabilities = np.exp(log_softmax(logits))
    expected = oracle.log_loss(labels, probabilities, labels=range(CLASSES))
    assert got["nll"] == pytest.approx(expected, abs=1e-6)


def test_calibration_error_is_the_papers(answers: tuple[np.ndarray, np.ndarray]) -> None:
    """The calibration error is the paper's sum over bins, computed the long way."""
    logits, labels = answers
    probabilities = np.exp(log_softmax(logits))
    confidence, right = probabilities.max(axis=1), logits.argmax(axis=1) == labels
    expected = 0.0
    for low in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (confidence > low) & (confidence <= low + 1 / CALIBRATION_BINS)
        if inside.any():
            expected += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    assert total(logits, labels).metrics()["ece"] == pytest.approx(expected, abs=1e-6)


@given(n=st.integers(1, 100_000), data=st.data())
def test_wilson_interval_is_scipys(n: int, data: st.DataObject) -> None:
    """The interval is SciPy's Wilson interval."""
    successes = data.draw(st.integers(0, n))
    expected = stats.binomtest(successes, n).proportion_ci(0.95, method="wilson")
    assert wilson_interval(successes, n) == pytest.approx(tuple(expected), abs=1e-12)


def test_wilson_interval_of_a_published_example() -> None:
    """81 of 263 gives 0.2553 to 0.3662: R. G. Newcombe, Statistics in Medicine 17 (1998), table I."""
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)


def test_reliability_is_scikit_learns() -> None:
    """Confidence and accuracy of the bins are scikit-learn's calibration curve, with two classes."""
    random = np.random.default_rng(1)
    logits, labels = random.normal(size=(N, 2)), random.integers(0, 2, N)
    totals = Totals(2)
    totals.add(logits, labels)
    confidence = np.exp(log_softmax(logits)).max(axis=1)
    right = logits.argmax(axis=1) == labels
    accuracies, confidences = calibration_curve(right, confidence, n_bins=CALIBRATION_BINS)
    bins = list(totals.reliability())
    assert [bin_[0] for bin_ in bins] == pytest.approx(list(confidences))
    assert [bin_[1] for bin_ in bins] == pytest.approx(list(accuracies))
    assert sum(bin_[2] for bin_ in bins) == N


@given(st.lists(st.integers(0, 1000), min_size=2, max_size=8, unique=True))
def test_the_interval_of_a_mean_is_scipys(counts: list[int]) -> None:
    """The interval of a mean over seeds is SciPy's, of Student's t."""
    values = [count / 1000 for count in counts]
    expected = stats.t.interval(0.95, len(values) - 1, np.mean(values), stats.sem(values))
    assert mean_interval(values) == pytest.approx(expected, abs=1e-9)


def figures(errors: int) -> dict[str, float | int]:
    totals = Totals(2)
    labels = np.zeros(100, np.int64)
    logits = np.where(np.arange(100)[:, None] < errors, [[0.0, 1.0]], [[1.0, 0.0]])
    totals.add(logits, labels)
    return totals.metrics()


def test_one_seed_is_reported_as_it_is() -> None:
    """With one seed the figures are that one's, and the interval is Wilson's."""
    assert over_seeds({3: figures(5)}) == figures(5)


def test_several_seeds_are_reported_with_mean_deviation_and_interval() -> None:
    """With several seeds there are mean, deviation and interval over them, and each one's own."""
    together = over_seeds({0: figures(4), 1: figures(5), 2: figures(9)})
    assert together["n"] == 100
    assert together["errors"] == 6
    assert together["accuracy"] == pytest.approx(0.94)
    assert together["accuracy_deviation"] == pytest.approx(np.std([0.96, 0.95, 0.91], ddof=1))
    low, high = mean_interval([0.96, 0.95, 0.91])
    assert (together["accuracy_low"], together["accuracy_high"]) == pytest.approx(
        (low, min(1, high)), abs=1e-6
    )
    assert together["by_seed"]["2"]["errors"] == 9
    assert together["nll"] == pytest.approx(
        np.mean([figures(errors)["nll"] for errors in (4, 5, 9)]), abs=1e-6
    )


@settings(max_examples=30)
@given(chunk=st.integers(1, N))
def test_any_chunk_size_gives_the_same_metrics(
    answers: tuple[np.ndarray, np.ndarray], chunk: int
) -> None:
    """Any chunk size gives identical counts and the same metrics."""
    whole, pieces = total(*answers), total(*answers, chunk=chunk)
    np.testing.assert_array_equal(whole.confusion, pieces.confusion)
    np.testing.assert_array_equal(whole.bin_images, pieces.bin_images)
    assert pieces.metrics() == pytest.approx(whole.metrics(), abs=2e-6)


def test_extreme_logits_stay_finite() -> None:
    """Logits of ±10⁴ give finite metrics that JSON can hold."""
    totals = Totals(2)
    totals.add(np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32), np.array([0, 0]))
    metrics = totals.metrics()
    assert metrics["nll"] == pytest.approx(1e4)
    assert json.loads(json.dumps(metrics, allow_nan=False)) == metrics


def test_predictions_and_confidences_come_back() -> None:
    """Adding a chunk returns the likeliest class and its probability."""
    predictions, confidences = Totals(2).add(np.log([[1.0, 3.0]]), np.array([0]))
    assert predictions.tolist() == [1]
    assert confidences.tolist() == pytest.approx([0.75])


@pytest.mark.parametrize(("right", "is_chance"), [(4, True), (5, False)])
def test_chance_is_what_the_most_frequent_class_would_reach(right: int, is_chance: bool) -> None:
    """Of 4 + 3 + 3 images, four right ones are no better than chance; five are."""
    labels = np.array([0] * 4 + [1] * 3 + [2] * 3)
    predictions = np.where(np.arange(10) < right, labels, (labels + 1) % 3)
    totals = Totals(3)
    totals.add(np.eye(3)[predictions] * 5, labels)
    assert totals.errors == 10 - right
    assert totals.is_chance is is_chance
