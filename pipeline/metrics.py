"""Classification metrics from running totals: chunks add up, and are divided once at the end.

Counts are int64 and sums float64, so that any chunk size, ragged tail included, gives the same
counts.
"""

import math
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Z_95 = 1.959963984540054  # the standard normal's 97.5 % quantile
CALIBRATION_BINS = 15


def wilson_interval(successes: int, n: int) -> tuple[float, float]:
    """Return the 95 % Wilson score interval of a proportion.

    Source: E. B. Wilson, Probable Inference, the Law of Succession, and Statistical Inference,
    Journal of the American Statistical Association 22 (1927).
    """
    share = successes / n
    centre = share + Z_95**2 / (2 * n)
    margin = Z_95 * math.sqrt(share * (1 - share) / n + Z_95**2 / (4 * n**2))
    scale = 1 + Z_95**2 / n
    return max(0.0, (centre - margin) / scale), min(1.0, (centre + margin) / scale)


def mean_interval(values: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % interval of the mean that two or more values estimate, by Student's t."""
    from scipy.special import stdtrit  # a third of a second to import; few need it

    margin = float(stdtrit(len(values) - 1, 0.975))
    margin *= statistics.stdev(values) / math.sqrt(len(values))
    mean = statistics.mean(values)
    return mean - margin, mean + margin


def log_softmax(logits: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
    """Return log-probabilities of shape (n, classes) in float64."""
    shifted: NDArray[np.float64] = logits - logits.max(axis=1, keepdims=True).astype(np.float64)
    log_sums: NDArray[np.float64] = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return shifted - log_sums


class Totals:
    """What a test set adds up to.

    Parameters
    ----------
    classes : int
    """

    def __init__(self, classes: int) -> None:
        self.confusion = np.zeros((classes, classes), np.int64)  # [label, prediction]
        self.negative_log_likelihood = 0.0
        self.bin_images = np.zeros(CALIBRATION_BINS, np.int64)
        self.bin_correct = np.zeros(CALIBRATION_BINS, np.int64)
        self.bin_confidence = np.zeros(CALIBRATION_BINS, np.float64)

    def add(
        self, logits: NDArray[np.floating[Any]], labels: NDArray[np.integer[Any]]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Add a chunk.

        Parameters
        ----------
        logits : array of shape (n, classes)
        labels : array of integers, shape (n,)

        Returns
        -------
        predictions : array of int64, shape (n,)
            The likeliest class; the first of equals.
        confidences : array of float64, shape (n,)
            Its probability.
        """
        log_probabilities = log_softmax(logits)
        predictions = log_probabilities.argmax(axis=1)
        confidences = np.exp(log_probabilities.max(axis=1))
        rows = np.arange(len(labels))
        np.add.at(self.confusion, (labels, predictions), 1)
        self.negative_log_likelihood -= float(log_probabilities[rows, labels].sum())
        # Bins (0, 1/15], (1/15, 2/15] …, as in the paper.
        bins = np.ceil(confidences * CALIBRATION_BINS).astype(np.int64) - 1
        bins = bins.clip(0, CALIBRATION_BINS - 1)
        np.add.at(self.bin_images, bins, 1)
        np.add.at(self.bin_correct, bins, predictions == labels)
        np.add.at(self.bin_confidence, bins, confidences)
        return predictions, confidences

    @property
    def n(self) -> int:
        """How many images were added."""
        return int(self.confusion.sum())

    @property
    def errors(self) -> int:
        """How many of them were classified wrongly."""
        return self.n - int(np.trace(self.confusion))

    @property
    def is_chance(self) -> bool:
        """Whether the most frequent class, given to every image, would make no more errors."""
        return self.n - self.errors <= int(self.confusion.sum(axis=1).max())

    @property
    def expected_calibration_error(self) -> float:
        """The mean gap between confidence and accuracy, over bins weighted by their images.

        Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5.
        """
        return float(np.abs(self.bin_correct - self.bin_confidence).sum() / self.n)

    def metrics(self) -> dict[str, float | int]:
        """Return counts, accuracy with its 95 % interval, mean loss (nats) and calibration."""
        low, high = wilson_interval(self.n - self.errors, self.n)
        return {
            "n": self.n,
            "errors": self.errors,
            "accuracy": (self.n - self.errors) / self.n,
            "accuracy_low": round(low, 6),
            "accuracy_high": round(high, 6),
            # Six decimals: what stays the same when chunks of another size are summed.
            "nll": round(self.negative_log_likelihood / self.n, 6),
            "ece": round(self.expected_calibration_error, 6),
        }

    def reliability(self) -> Iterator[tuple[float, float, int]]:
        """Yield mean confidence, accuracy and number of images of each bin that has images."""
        for images, correct, confidence in zip(
            self.bin_images, self.bin_correct, self.bin_confidence, strict=True
        ):
            if images:
                yield float(confidence / images), float(correct / images), int(images)


def over_seeds(figures: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return the figures of `Totals.metrics` over the seeds of a variant.

    With one seed they are that one's, and the interval of the accuracy is over test images. With
    several they are means, the interval is over trainings, there is a sample standard deviation,
    and ``by_seed`` has each one's.

    Parameters
    ----------
    figures : dict of int to dict
        What `Totals.metrics` returned, by seed.
    """
    first, *others = figures.values()
    if not others:
        return dict(first)

    def values_of(name: str) -> list[float]:
        return [each[name] for each in figures.values()]

    accuracies = values_of("accuracy")
    low, high = mean_interval(accuracies)
    names = ("errors", "accuracy", "nll", "ece")
    return {
        "n": first["n"],
        "errors": round(statistics.mean(values_of("errors")), 3),
        "accuracy": round(statistics.mean(accuracies), 8),
        "accuracy_low": round(max(0.0, low), 6),
        "accuracy_high": round(min(1.0, high), 6),
        "accuracy_deviation": round(statistics.stdev(accuracies), 8),
        "nll": round(statistics.mean(values_of("nll")), 6),
        "ece": round(statistics.mean(values_of("ece")), 6),
        "by_seed": {
            str(seed): {name: each[name] for name in names} for seed, each in figures.items()
        },
    }
