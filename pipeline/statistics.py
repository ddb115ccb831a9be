"""Whether two classifiers differ: tests and intervals for accuracies, most on the same images."""

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

from pipeline.metrics import Z_95, wilson_interval
from pipeline.predictions import Predictions

SIGNIFICANCE = 0.05


class Difference(NamedTuple):
    """A difference in accuracy, as a share: its value, 95 % interval and p-value."""

    value: float
    low: float
    high: float
    p: float


class Paired(NamedTuple):
    """Two classifiers on the same images.

    ``fixed`` and ``broken`` are the images that only the second one, and only the first one, has
    right, each trained with its first seed. ``over_seeds`` tells whether the difference is between
    means over seeds.
    """

    difference: Difference
    fixed: list[int]
    broken: list[int]
    over_seeds: bool


def compare_predictions(first: Predictions, second: Predictions) -> Paired:
    """Compare two classifiers by what they predicted for the same images.

    With several seeds on both sides it is the means over seeds that are compared, since one
    training more or less well says nothing of the other; else the first seeds, image by image.

    Parameters
    ----------
    first, second : Predictions
        Of the same test set.
    """
    accuracies = first.accuracies, second.accuracies
    wrong = first.first_mistakes, second.first_mistakes
    fixed, broken = sorted(wrong[0] - wrong[1]), sorted(wrong[1] - wrong[0])
    several = all(len(values) > 1 for values in accuracies)
    over_seeds = several and any(len(set(values)) > 1 for values in accuracies)
    difference = (
        seeds_difference(*accuracies)
        if over_seeds
        else paired_difference(first.test_images, len(fixed), len(broken))
    )
    return Paired(difference, fixed, broken, over_seeds)


def seeds_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Compare the mean accuracies of two classifiers, each trained with several seeds.

    Returns
    -------
    Difference
        Second minus first; p-value and interval are those of Welch's t-test.

    Notes
    -----
    Source: B. L. Welch, The generalization of "Student's" problem when several different population
    variances are involved, Biometrika 34 (1947).
    """
    from scipy.stats import ttest_ind  # a second to import; few need it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread
        test = ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(0.95)
    value = sum(second) / len(second) - sum(first) / len(first)
    return Difference(value, float(low), float(high), float(test.pvalue))


def sign_test(successes: int, n: int) -> float:
    """Return the exact two-sided p-value of so many successes in `n` tosses of a fair coin."""
    term = tail = 1  # binomial coefficients as integers: exact, however large
    for k in range(min(successes, n - successes)):
        term = term * (n - k) // (k + 1)
        tail += term
    return min(1.0, 2 * tail / (1 << n))


def paired_difference(n: int, fixed: int, broken: int) -> Difference:
    """Compare two classifiers on the same images.

    Parameters
    ----------
    n : int
        How many images there are.
    fixed, broken : int
        How many only the second one has right, and how many only the first one.

    Returns
    -------
    Difference
        Second minus first. The p-value is that of McNemar's exact test, two-sided; the interval is
        Wald's with half an image added to each cell of the table.

    Notes
    -----
    Sources: Q. McNemar, Note on the sampling error of the difference between correlated proportions
    or percentages, Psychometrika 12 (1947); A. Agresti and Y. Min, Simple improved confidence
    intervals for comparing matched proportions, Statistics in Medicine 24 (2005).
    """
    discordant = fixed + broken
    p = sign_test(fixed, discordant)
    centre = (fixed - broken) / (n + 2)
    variance = (discordant + 1) / (n + 2) - centre**2
    margin = Z_95 * math.sqrt(variance / (n + 2))
    return Difference(
        (fixed - broken) / n, max(-1.0, centre - margin), min(1.0, centre + margin), p
    )


def unpaired_difference(first_right: int, first: int, second_right: int, second: int) -> Difference:
    """Compare two classifiers of which only the counts are known.

    Parameters
    ----------
    first_right, first : int
        How many images the first one has right, of how many.
    second_right, second : int

    Returns
    -------
    Difference
        Second minus first. The p-value is that of the score test of two proportions, the interval
        Newcombe's, from the two Wilson intervals.

    Notes
    -----
    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions,
    Statistics in Medicine 17 (1998), method 10.
    """
    share_1, share_2 = first_right / first, second_right / second
    low_1, high_1 = wilson_interval(first_right, first)
    low_2, high_2 = wilson_interval(second_right, second)
    value = share_2 - share_1
    pooled = (first_right + second_right) / (first + second)
    error = math.sqrt(pooled * (1 - pooled) * (1 / first + 1 / second))
    return Difference(
        value,
        value - math.hypot(share_2 - low_2, high_1 - share_1),
        value + math.hypot(high_2 - share_2, share_1 - low_1),
        math.erfc(abs(value) / error / math.sqrt(2)) if error else 1.0,
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number, in the order given.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6 (1979).
    """
    adjusted = [1.0] * len(p_values)
    largest = 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def verdict(value: float, p: float) -> str:
    """Return what a difference says: ``better``, ``worse`` or ``no evidence of a difference``."""
    if p >= SIGNIFICANCE:
        return "no evidence of a difference"
    return "better" if value > 0 else "worse"
