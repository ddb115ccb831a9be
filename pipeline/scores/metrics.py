"""Classification metrics from running totals: chunks are added up, and divided once at the end.

Counts are int64 and sums float64, so any chunk size gives the same counts.
"""

import statistics
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import log_softmax

CALIBRATION_BINS = 15


class Totals:
    """The running totals of a test set."""

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
            The most likely class; the first one if several are equally likely.
        confidences : array of float64, shape (n,)
            Its probability.
        """
        log_probabilities = log_softmax(logits.astype(np.float64), axis=1)
        predictions = log_probabilities.argmax(axis=1)
        confidences = np.exp(log_probabilities.max(axis=1))
        rows = np.arange(len(labels))
        np.add.at(self.confusion, (labels, predictions), 1)
        self.negative_log_likelihood -= float(log_probabilities[rows, labels].sum())
        # Bins (0, 1/15], (1/15, 2/15] …, as Guo et al. define them.
        bins = np.ceil(confidences * CALIBRATION_BINS).astype(np.int64) - 1
        bins = bins.clip(0, CALIBRATION_BINS - 1)
        np.add.at(self.bin_images, bins, 1)
        np.add.at(self.bin_correct, bins, predictions == labels)
        np.add.at(self.bin_confidence, bins, confidences)
        return predictions, confidences

    @property
    def n(self) -> int:
        """The number of images."""
        return int(self.confusion.sum())

    @property
    def errors(self) -> int:
        """The number of misclassified images."""
        return self.n - int(np.trace(self.confusion))

    @property
    def is_chance(self) -> bool:
        """Whether predicting the most frequent class for every image would make no more errors."""
        return self.n - self.errors <= int(self.confusion.sum(axis=1).max())

    @property
    def expected_calibration_error(self) -> float:
        """The mean gap between confidence and accuracy, over bins weighted by their size.

        Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5.
        """
        return float(np.abs(self.bin_correct - self.bin_confidence).sum() / self.n)

    def metrics(self) -> dict[str, float | int]:
        """Return counts, accuracy, mean loss (nats) and calibration error."""
        return {
            "n": self.n,
            "errors": self.errors,
            "accuracy": (self.n - self.errors) / self.n,
            # Six decimals, which do not depend on the size of the chunks that are summed.
            "nll": round(self.negative_log_likelihood / self.n, 6),
            "ece": round(self.expected_calibration_error, 6),
        }

    def calibration(self) -> Iterator[tuple[float, float, int]]:
        """Yield mean confidence, accuracy and number of images of each bin that has images."""
        bins = (self.bin_images, self.bin_correct, self.bin_confidence)
        for images, correct, confidence in zip(*bins, strict=True):
            if images:
                yield float(confidence / images), float(correct / images), int(images)


def over_seeds(figures: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return the figures of `Totals.metrics`, given by seed, averaged over the seeds of a variant.

    With several seeds there is also the sample standard deviation of the accuracy, and ``by_seed``
    has the figures of each one.
    """
    first, *others = figures.values()
    if not others:
        return dict(first)
    values = {name: [each[name] for each in figures.values()] for name in first}
    return {
        "n": first["n"],
        "errors": round(statistics.mean(values["errors"]), 3),
        "accuracy": round(statistics.mean(values["accuracy"]), 8),
        "accuracy_deviation": round(statistics.stdev(values["accuracy"]), 8),
        "nll": round(statistics.mean(values["nll"]), 6),
        "ece": round(statistics.mean(values["ece"]), 6),
        "by_seed": {
            str(seed): {name: each[name] for name in each if name != "n"}
            for seed, each in figures.items()
        },
    }
