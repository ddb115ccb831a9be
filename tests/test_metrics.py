import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from sklearn import metrics as oracle

from pipeline.metrics import CALIBRATION_BINS, Totals, log_softmax, wilson_interval

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
