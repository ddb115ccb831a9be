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


class Reliability:
    """How far the probabilities that a model gives can be believed: running totals."""

    def __init__(self) -> None:
        self.negative_log_likelihood = 0.0
        self.images = np.zeros(CALIBRATION_BINS, np.int64)
        self.correct = np.zeros(CALIBRATION_BINS, np.int64)
        self.confidence = np.zeros(CALIBRATION_BINS, np.float64)

    def add(
        self, log_probabilities: NDArray[np.float64], labels: NDArray[np.integer[Any]]
    ) -> NDArray[np.float64]:
        """Add a chunk, and return the confidences: the probability of the most likely class.

        Parameters
        ----------
        log_probabilities : array of shape (n, classes)
        labels : array of integers, shape (n,)

        Returns
        -------
        array of float64, shape (n,)
        """
        confidences: NDArray[np.float64] = np.exp(log_probabilities.max(axis=1))
        self.negative_log_likelihood -= float(
            log_probabilities[np.arange(len(labels)), labels].sum()
        )
        # Bins (0, 1/15], (1/15, 2/15] …, as Guo et al. define them.
        bins = np.ceil(confidences * CALIBRATION_BINS).astype(np.int64) - 1
        bins = bins.clip(0, CALIBRATION_BINS - 1)
        np.add.at(self.images, bins, 1)
        np.add.at(self.correct, bins, log_probabilities.argmax(axis=1) == labels)
        np.add.at(self.confidence, bins, confidences)
        return confidences

    def metrics(self) -> dict[str, float]:
        """Return the mean loss (nats) and the expected calibration error.

        The error is the mean gap between confidence and accuracy, over bins weighted by their size.
        Source: C. Guo et al., On Calibration of Modern Neural Networks, ICML 2017, equation 5.
        """
        n = self.images.sum()
        return {
            # Six decimals, which do not depend on the size of the chunks that are summed.
            "nll": round(self.negative_log_likelihood / int(n), 6),
            "ece": round(float(np.abs(self.correct - self.confidence).sum() / n), 6),
        }

    def curve(self) -> Iterator[tuple[float, float, int]]:
        """Yield mean confidence, accuracy and number of images of each bin that has images."""
        for images, correct, confidence in zip(
            self.images, self.correct, self.confidence, strict=True
        ):
            if images:
                yield float(confidence / images), float(correct / images), int(images)


class Totals:
    """The running totals of a test set.

    Parameters
    ----------
    classes : int
    temperature : float
        What divides the logits to calibrate the probabilities.
    """

    def __init__(self, classes: int, temperature: float = 1.0) -> None:
        self.temperature = temperature
        self.confusion = np.zeros((classes, classes), np.int64)  # [label, prediction]
        self.raw, self.calibrated = Reliability(), Reliability()

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
            Its calibrated probability.
        """
        wide = logits.astype(np.float64)
        predictions = wide.argmax(axis=1)
        np.add.at(self.confusion, (labels, predictions), 1)
        self.raw.add(log_softmax(wide, axis=1), labels)
        confidences = self.calibrated.add(log_softmax(wide / self.temperature, axis=1), labels)
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
    def balanced_accuracy(self) -> float:
        """The mean recall of the classes that have images."""
        images = self.confusion.sum(axis=1)
        known = images > 0
        return float((self.confusion.diagonal()[known] / images[known]).mean())

    def metrics(self) -> dict[str, float | int]:
        """Return counts, accuracies, and loss and calibration error before and after scaling."""
        calibrated = self.calibrated.metrics()
        return {
            "n": self.n,
            "errors": self.errors,
            "accuracy": (self.n - self.errors) / self.n,
            "balanced_accuracy": round(self.balanced_accuracy, 8),
            **self.raw.metrics(),
            "temperature": self.temperature,
            **{f"calibrated_{name}": value for name, value in calibrated.items()},
        }


def over_seeds(figures: Mapping[int, Mapping[str, float]]) -> dict[str, Any]:
    """Return the figures of `Totals.metrics`, given by seed, averaged over the seeds of a variant.

    With several seeds there is also the sample standard deviation of the accuracy, and ``by_seed``
    has the figures of each one.
    """
    first, *others = figures.values()
    if not others:
        return dict(first)

    def mean(name: str) -> float:
        return round(statistics.mean(each[name] for each in figures.values()), 8)

    accuracies = [each["accuracy"] for each in figures.values()]
    return {
        "n": first["n"],
        "errors": round(mean("errors"), 3),
        "accuracy": mean("accuracy"),
        "accuracy_deviation": round(statistics.stdev(accuracies), 8),
        **{name: round(mean(name), 6) for name in first if name not in ("n", "errors", "accuracy")},
        "by_seed": {
            str(seed): {name: each[name] for name in each if name != "n"}
            for seed, each in figures.items()
        },
    }
