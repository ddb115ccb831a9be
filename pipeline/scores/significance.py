"""Whether two classifiers differ: tests and intervals for accuracies, mostly on the same images."""

import math
import warnings
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from scipy import stats
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest

from pipeline.scores.predictions import Predictions

SIGNIFICANCE = 0.05
CONFIDENCE = 0.95


class Difference(NamedTuple):
    """A difference in accuracy, as a share: its value, 95 % interval and p-value."""

    value: float
    low: float
    high: float
    p: float


class Paired(NamedTuple):
    """The comparison of two classifiers on the same images.

    ``fixed`` and ``broken`` are the images that only the second one, and only the first one,
    classifies correctly, each trained with its first seed. ``over_seeds`` tells whether the
    difference is between means over seeds.
    """

    difference: Difference
    fixed: list[int]
    broken: list[int]
    over_seeds: bool


def accuracy_interval(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Return the 95 % interval of the accuracy in an evaluation's metrics.

    With several seeds it is `seeds_interval`, with one `images_interval`.
    """
    return seeds_interval(metrics) or images_interval(metrics)


def seeds_interval(metrics: Mapping[str, Any]) -> tuple[float, float] | None:
    """Return Student's 95 % interval over trainings; None if there is only one."""
    by_seed = [each["accuracy"] for each in metrics.get("by_seed", {}).values()]
    if len(by_seed) < 2:
        return None
    mean, error = sum(by_seed) / len(by_seed), float(stats.sem(by_seed))
    margin = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(by_seed) - 1)) * error
    return max(0.0, mean - margin), min(1.0, mean + margin)


def images_interval(metrics: Mapping[str, Any]) -> tuple[float, float]:
    """Return Wilson's 95 % score interval over test images, of the mean accuracy."""
    interval = stats.binomtest(*right_and_all(metrics)).proportion_ci(CONFIDENCE, "wilson")
    return float(interval.low), float(interval.high)


def right_and_all(metrics: Mapping[str, Any]) -> tuple[int, int]:
    """Return how many images are classified correctly, and out of how many."""
    return metrics["n"] - round(metrics["errors"]), metrics["n"]


def compare_predictions(first: Predictions, second: Predictions) -> Paired:
    """Compare two classifiers by what they predicted for the same test set.

    With several seeds on both sides the means over seeds are compared, since one training says
    little about the next; else the first seeds, image by image.
    """
    accuracies = first.accuracies, second.accuracies
    wrong = first.first_mistakes, second.first_mistakes
    fixed, broken = sorted(wrong[0] - wrong[1]), sorted(wrong[1] - wrong[0])
    several = all(len(values) > 1 for values in accuracies)
    over_seeds = several and any(len(set(values)) > 1 for values in accuracies)
    difference = paired_difference(first.test_images, len(fixed), len(broken))
    if over_seeds:
        difference = seeds_difference(*accuracies)
    return Paired(difference, fixed, broken, over_seeds)


def seeds_difference(first: Sequence[float], second: Sequence[float]) -> Difference:
    """Return the second mean accuracy minus the first, each over several seeds, by Welch's t-test.

    Source: B. L. Welch, The generalization of "Student's" problem when several different population
    variances are involved, Biometrika 34 (1947).
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # one side may have no spread
        test = stats.ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(CONFIDENCE)
    value = sum(second) / len(second) - sum(first) / len(first)
    return Difference(value, float(low), float(high), float(test.pvalue))


def paired_difference(n: int, fixed: int, broken: int) -> Difference:
    """Return the second accuracy minus the first, on the same images.

    The p-value is that of McNemar's exact test, two-sided; the interval is Wald's with half an
    image added to each cell of the table.

    Parameters
    ----------
    n : int
        The number of images.
    fixed, broken : int
        How many only the second one, and only the first one, classifies correctly.

    Notes
    -----
    Sources: Q. McNemar, Note on the sampling error of the difference between correlated proportions
    or percentages, Psychometrika 12 (1947); A. Agresti and Y. Min, Simple improved confidence
    intervals for comparing matched proportions, Statistics in Medicine 24 (2005).
    """
    discordant = fixed + broken
    p = float(stats.binomtest(fixed, discordant).pvalue) if discordant else 1.0
    centre = (fixed - broken) / (n + 2)
    variance = (discordant + 1) / (n + 2) - centre**2
    margin = float(stats.norm.ppf((1 + CONFIDENCE) / 2)) * math.sqrt(variance / (n + 2))
    return Difference(
        (fixed - broken) / n, max(-1.0, centre - margin), min(1.0, centre + margin), p
    )


def unpaired_difference(first_right: int, first: int, second_right: int, second: int) -> Difference:
    """Return the second accuracy minus the first, of counts of right and of all images.

    The p-value is that of the score test of two proportions, the interval Newcombe's, from the two
    Wilson intervals.

    Source: R. G. Newcombe, Interval estimation for the difference between independent proportions,
    Statistics in Medicine 17 (1998), method 10.
    """
    right, images = (second_right, first_right), (second, first)
    low, high = confint_proportions_2indep(
        second_right, second, first_right, first, method="newcomb", compare="diff"
    )
    all_alike = sum(right) in (0, sum(images))  # no spread to test against
    p = 1.0 if all_alike else float(proportions_ztest(right, images)[1])
    return Difference(second_right / second - first_right / first, float(low), float(high), p)


def holm(p_values: Sequence[float]) -> list[float]:
    """Return p-values adjusted for their number by Holm's method, in the order given.

    Source: S. Holm, A simple sequentially rejective multiple test procedure, Scandinavian Journal
    of Statistics 6 (1979).
    """
    if not p_values:
        return []
    return [float(p) for p in multipletests(p_values, method="holm")[1]]


def verdict(value: float, p: float) -> str:
    """Return ``better``, ``worse`` or ``no evidence of a difference``."""
    if p >= SIGNIFICANCE:
        return "no evidence of a difference"
    return "better" if value > 0 else "worse"
