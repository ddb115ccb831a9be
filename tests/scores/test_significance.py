import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.proportion import proportion_confint
from statsmodels.stats.weightstats import CompareMeans

from pipeline.scores.predictions import Predictions, collect
from pipeline.scores.significance import (
    accuracy_interval,
    compare_predictions,
    holm,
    images_interval,
    paired_difference,
    seeds_difference,
    seeds_interval,
    unpaired_difference,
    verdict,
)


@pytest.mark.parametrize(
    ("fixed", "broken"), [(0, 0), (1, 0), (0, 6), (10, 10), (17, 5), (150, 86), (3, 400)]
)
def test_the_paired_p_value_is_mcnemars(fixed: int, broken: int) -> None:
    """The p-value equals that of statsmodels' exact McNemar test."""
    ours = paired_difference(10_000, fixed, broken).p
    theirs = mcnemar([[9_000, broken], [fixed, 0]], exact=True).pvalue
    assert ours == pytest.approx(min(1.0, theirs), rel=1e-9)


def test_a_published_example_is_reproduced() -> None:
    """The approval of the Prime Minister: 944 of 1,600, then 880; a drop of 4 points, 2 to 6.

    A. Agresti, Categorical Data Analysis, 2nd edition (2002), section 10.1.1.
    """
    difference = paired_difference(1_600, fixed=86, broken=150)
    assert difference.value == (880 - 944) / 1_600
    assert (round(difference.low, 2), round(difference.high, 2)) == (-0.06, -0.02)
    assert difference.p < 0.0001


@pytest.mark.parametrize(("shares", "n"), [((0.004, 0.003), 2_000), ((0.05, 0.05), 360)])
def test_the_paired_interval_covers_the_truth(shares: tuple[float, float], n: int) -> None:
    """The interval contains the true difference in 19 of 20 simulated comparisons, or a little more."""
    random = np.random.default_rng(0)
    fixed, broken = (random.binomial(n, share, 4_000) for share in shares)
    truth = shares[0] - shares[1]
    intervals = [paired_difference(n, int(f), int(b)) for f, b in zip(fixed, broken, strict=True)]
    covered = np.mean([each.low <= truth <= each.high for each in intervals])
    assert 0.94 <= covered <= 0.985


def test_the_unpaired_interval_is_newcombes() -> None:
    """56 of 70 against 48 of 80 differ by 0.0524 to 0.3339.

    R. G. Newcombe, Statistics in Medicine 17 (1998), table II, example (a), method 10.
    """
    difference = unpaired_difference(48, 80, 56, 70)
    assert difference.value == pytest.approx(0.2)
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)


@pytest.mark.parametrize(
    ("first", "second"),
    [((56, 70), (48, 80)), ((9_942, 10_000), (9_941, 10_000)), ((5, 9), (9, 9))],
)
def test_the_unpaired_p_value_is_the_score_tests(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    """Without the images, the p-value is that of the chi-squared test, which equals the score test."""
    table = [[right, n - right] for right, n in (first, second)]
    expected = stats.chi2_contingency(table, correction=False).pvalue
    assert unpaired_difference(*first, *second).p == pytest.approx(expected)


def test_two_flawless_classifiers_do_not_differ() -> None:
    """Without errors there is no evidence of a difference, and no division by zero."""
    assert unpaired_difference(10, 10, 20, 20).p == 1
    assert paired_difference(10, 0, 0).p == 1
    assert not math.isnan(paired_difference(1, 1, 0).low)


def test_p_values_are_adjusted_by_holms_method() -> None:
    """The smallest of six p-values counts six times, the next one five times, and so on."""
    assert holm([0.04, 0.001, 0.5, 0.02, 0.02, 0.9]) == pytest.approx(
        [3 * 0.04, 6 * 0.001, 1, 5 * 0.02, 5 * 0.02, 1]
    )
    assert holm([]) == []


def test_the_interval_of_one_training_is_wilsons() -> None:
    """81 of 263 give 0.2553 to 0.3662.

    R. G. Newcombe, Statistics in Medicine 17 (1998), table I.
    """
    metrics = {"n": 263, "errors": 263 - 81, "accuracy": 81 / 263}
    assert accuracy_interval(metrics) == pytest.approx((0.2553, 0.3662), abs=5e-5)


@pytest.mark.parametrize("right", [0, 100])
def test_the_interval_of_one_training_stays_between_0_and_1(right: int) -> None:
    """Even with no error, or only errors, the interval is a real one inside 0 … 1."""
    low, high = accuracy_interval({"n": 100, "errors": 100 - right, "accuracy": right / 100})
    assert 0 <= low < high <= 1


def test_the_interval_of_several_trainings_is_students() -> None:
    """The interval of a mean over three seeds is 4.303 standard errors wide, and ends at 1."""
    accuracies = [0.96, 0.95, 0.91]
    metrics = {
        "n": 100,
        "errors": 6,
        "by_seed": {str(seed): {"accuracy": each} for seed, each in enumerate(accuracies)},
    }
    margin = 4.303 * np.std(accuracies, ddof=1) / math.sqrt(3)
    assert accuracy_interval(metrics) == pytest.approx((0.94 - margin, 1), abs=1e-4)


def test_intervals_over_images_and_over_seeds_are_told_apart() -> None:
    """Several trainings have both intervals: Wilson's of the mean, and SciPy's of Student's t."""
    accuracies = [0.96, 0.95, 0.91, 0.94]
    metrics = {
        "n": 1000,
        "errors": 60,
        "accuracy": 0.94,
        "by_seed": {str(seed): {"accuracy": each} for seed, each in enumerate(accuracies)},
    }
    low, high = stats.t.interval(0.95, 3, np.mean(accuracies), stats.sem(accuracies))
    assert seeds_interval(metrics) == pytest.approx((low, high))
    wilson = proportion_confint(940, 1000, method="wilson")
    assert images_interval(metrics) == pytest.approx(wilson)


@pytest.mark.parametrize("by_seed", [{}, {"by_seed": {"0": {"accuracy": 0.9}}}])
def test_one_training_has_no_interval_over_seeds(by_seed: dict[str, object]) -> None:
    """With a single training there is no spread to tell an interval from."""
    metrics = {"n": 10, "errors": 1, "accuracy": 0.9, **by_seed}
    assert seeds_interval(metrics) is None
    assert accuracy_interval(metrics) == images_interval(metrics)


def test_a_mean_of_errors_is_rounded_to_images() -> None:
    """The interval over images is that of the nearest whole number of errors."""
    of = images_interval
    assert of({"n": 100, "errors": 6.4}) == of({"n": 100, "errors": 6})
    assert of({"n": 100, "errors": 6.6}) == of({"n": 100, "errors": 7})


def test_a_verdict_needs_evidence() -> None:
    """A difference is better or worse only if its p-value is below 5 %."""
    assert verdict(0.01, 0.04) == "better"
    assert verdict(-0.01, 0.04) == "worse"
    assert verdict(-0.01, 0.05) == "no evidence of a difference"


def predictions(*wrong: set[int], images: int = 200) -> Predictions:
    """Return a classifier's predictions from one set of misread images for each seed."""
    tables = [
        pd.DataFrame(
            {
                "seed": seed,
                "index": range(images),
                "label": 0,
                "prediction": [int(image in misread) for image in range(images)],
                "confidence": 0.9,
            }
        )
        for seed, misread in enumerate(wrong)
    ]
    return collect(tables)


def test_one_seed_is_compared_image_by_image() -> None:
    """With one seed, the images that flipped decide, as in McNemar's test."""
    paired = compare_predictions(predictions({1, 2, 3}), predictions({3, 4}))
    assert (paired.fixed, paired.broken) == ([1, 2], [4])
    assert paired.difference == paired_difference(200, 2, 1)
    assert not paired.over_seeds


def test_several_seeds_are_compared_by_their_means() -> None:
    """With several seeds on both sides the test is Welch's, and equals that of statsmodels."""
    first = [set(range(count)) for count in (20, 24, 19)]
    second = [set(range(count)) for count in (10, 9, 14, 12)]
    paired = compare_predictions(predictions(*first), predictions(*second))
    shares = [[1 - len(misread) / 200 for misread in each] for each in (first, second)]
    theirs = CompareMeans.from_data(shares[1], shares[0])
    assert paired.over_seeds
    assert paired.difference.p == pytest.approx(theirs.ttest_ind(usevar="unequal")[1])
    interval = theirs.tconfint_diff(usevar="unequal")
    assert (paired.difference.low, paired.difference.high) == pytest.approx(interval)
    assert paired.difference.value == pytest.approx(np.mean(shares[1]) - np.mean(shares[0]))
    assert (paired.fixed, paired.broken) == (list(range(10, 20)), [])


def test_one_seed_against_several_compares_the_first_ones() -> None:
    """If one side has a single seed, the first seeds are compared image by image."""
    paired = compare_predictions(predictions({1}), predictions({2}, {3}))
    assert (paired.fixed, paired.broken, paired.over_seeds) == ([1], [2], False)


def test_seeds_that_all_agree_are_compared_by_images() -> None:
    """Seeds without any spread on either side say nothing about the noise between trainings."""
    assert not compare_predictions(predictions({1}, {2}), predictions({3}, {4})).over_seeds
    assert compare_predictions(predictions({1}, {2}), predictions({3}, {4, 5})).over_seeds


def test_no_spread_on_one_side_still_gives_a_difference() -> None:
    """Equal accuracies on one side give finite figures without a warning."""
    difference = seeds_difference([0.9, 0.9], [0.8, 0.85])
    assert difference.low < difference.value < difference.high
    assert 0 < difference.p < 1
