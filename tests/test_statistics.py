import math

import numpy as np
import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import confint_proportions_2indep, proportions_ztest
from statsmodels.stats.weightstats import CompareMeans

from pipeline.predictions import Predictions, collect
from pipeline.statistics import (
    compare_predictions,
    holm,
    paired_difference,
    seeds_difference,
    unpaired_difference,
    verdict,
)


@pytest.mark.parametrize(
    ("fixed", "broken"), [(0, 0), (1, 0), (0, 6), (10, 10), (17, 5), (150, 86), (3, 400)]
)
def test_the_paired_p_value_is_mcnemars(fixed: int, broken: int) -> None:
    """The p-value is that of statsmodels' exact McNemar test."""
    ours = paired_difference(10_000, fixed, broken).p
    theirs = mcnemar([[9_000, broken], [fixed, 0]], exact=True).pvalue
    assert ours == pytest.approx(min(1.0, theirs), rel=1e-9)


def test_a_published_example_comes_out() -> None:
    """The approval of the Prime Minister: 944 of 1,600, then 880; a drop of 4 points, 2 to 6.

    A. Agresti, Categorical Data Analysis, 2nd edition (2002), section 10.1.1.
    """
    difference = paired_difference(1_600, fixed=86, broken=150)
    assert difference.value == (880 - 944) / 1_600
    assert (round(difference.low, 2), round(difference.high, 2)) == (-0.06, -0.02)
    assert difference.p < 0.0001


@pytest.mark.parametrize(("shares", "n"), [((0.004, 0.003), 2_000), ((0.05, 0.05), 360)])
def test_the_paired_interval_covers_the_truth(shares: tuple[float, float], n: int) -> None:
    """In 19 of 20 made-up comparisons, or more, the interval holds the true difference."""
    random = np.random.default_rng(0)
    fixed, broken = (random.binomial(n, share, 4_000) for share in shares)
    truth = shares[0] - shares[1]
    intervals = [paired_difference(n, int(f), int(b)) for f, b in zip(fixed, broken, strict=True)]
    covered = np.mean([each.low <= truth <= each.high for each in intervals])
    assert 0.94 <= covered <= 0.985


@pytest.mark.parametrize(
    ("first", "second"),
    [((56, 70), (48, 80)), ((9_942, 10_000), (9_941, 10_000)), ((5, 9), (9, 9))],
)
def test_the_unpaired_interval_and_p_value_are_newcombes(
    first: tuple[int, int], second: tuple[int, int]
) -> None:
    """Without the images, interval and p-value are statsmodels'."""
    ours = unpaired_difference(*first, *second)
    low, high = confint_proportions_2indep(*second, *first, method="newcomb", compare="diff")
    assert [ours.low, ours.high] == pytest.approx([low, high])
    _, p = proportions_ztest([second[0], first[0]], [second[1], first[1]])
    assert ours.p == pytest.approx(p)


def test_two_flawless_classifiers_do_not_differ() -> None:
    """Where nobody errs there is no evidence, and no division by zero."""
    assert unpaired_difference(10, 10, 20, 20).p == 1
    assert paired_difference(10, 0, 0).p == 1
    assert not math.isnan(paired_difference(1, 1, 0).low)


def test_holms_correction_is_holms() -> None:
    """Adjusted p-values are statsmodels', in the order given."""
    p_values = [0.04, 0.001, 0.5, 0.02, 0.02, 1.0]
    assert holm(p_values) == pytest.approx(multipletests(p_values, method="holm")[1])
    assert holm([]) == []


def test_a_verdict_needs_evidence() -> None:
    """Only a p-value below 5 % makes a difference better or worse."""
    assert verdict(0.01, 0.04) == "better"
    assert verdict(-0.01, 0.04) == "worse"
    assert verdict(-0.01, 0.05) == "no evidence of a difference"


def predictions(*wrong: set[int], images: int = 200) -> Predictions:
    """Return what a classifier predicted, one set of misread images for each of its seeds."""
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
    """With one seed the images that flipped decide, as in McNemar's test."""
    paired = compare_predictions(predictions({1, 2, 3}), predictions({3, 4}))
    assert (paired.fixed, paired.broken) == ([1, 2], [4])
    assert paired.difference == paired_difference(200, 2, 1)
    assert not paired.over_seeds


def test_several_seeds_are_compared_by_their_means() -> None:
    """With several seeds on both sides it is Welch's test, as statsmodels does it."""
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
    """Where one side has a single seed, the first seeds are compared image by image."""
    paired = compare_predictions(predictions({1}), predictions({2}, {3}))
    assert (paired.fixed, paired.broken, paired.over_seeds) == ([1], [2], False)


def test_seeds_that_all_agree_are_compared_by_images() -> None:
    """Seeds without any spread, on either side, say nothing of the noise between trainings."""
    assert not compare_predictions(predictions({1}, {2}), predictions({3}, {4})).over_seeds
    assert compare_predictions(predictions({1}, {2}), predictions({3}, {4, 5})).over_seeds


def test_no_spread_on_one_side_still_gives_a_difference() -> None:
    """Equal accuracies on one side give finite figures, without a warning."""
    difference = seeds_difference([0.9, 0.9], [0.8, 0.85])
    assert difference.low < difference.value < difference.high
    assert 0 < difference.p < 1
