import numpy as np
import pandas as pd
import pytest
from scipy.stats import ttest_ind

from pipeline.scores.ranking import Ranked, last_of_each_seed, rank

GOOD = Ranked("good", [0.010, 0.012, 0.011, 0.013], [0.996, 0.995, 0.997, 0.996])
FAIR = Ranked("fair", [0.0125, 0.0135, 0.011], [0.995, 0.995, 0.994])
POOR = Ranked("poor", [0.05, 0.06, 0.05], [0.98, 0.97, 0.98])
ONCE = Ranked("once", [0.03], [0.99])


def test_the_last_row_of_each_seed_counts() -> None:
    """Of each training the loss and accuracy at its end count, however its rows are ordered."""
    curve = pd.DataFrame(
        {
            "seed": [4, 4, 0, 0, 0],
            "epoch": [1.0, 2.0, 1.0, 2.0, 2.5],
            "loss": [0.5, 0.25, 0.125, 0.2, 0.3],
            "accuracy": [0.75, 0.875, 0.9, 0.8, 0.7],
        }
    )
    assert last_of_each_seed(curve, "net") == Ranked("net", [0.25, 0.3], [0.875, 0.7])


def test_the_lowest_loss_comes_first() -> None:
    """Variants are ordered by their mean loss, whatever their accuracy, and keep their figures."""
    ranked = rank([POOR, ONCE, GOOD, FAIR])
    assert [each.variant for each in ranked] == ["good", "fair", "once", "poor"]
    assert [each.loss for each in ranked] == pytest.approx(
        [np.mean(each.losses) for each in (GOOD, FAIR, ONCE, POOR)]
    )
    assert (ranked[3].losses, ranked[3].accuracies) == (POOR.losses, POOR.accuracies)


def test_others_are_compared_with_the_best_by_welchs_test() -> None:
    """Differences of the mean loss have Welch's interval, and p-values adjusted by hand."""
    ranked = {each.variant: each.difference for each in rank([POOR, GOOD, FAIR])}
    tests = {each.variant: ttest_ind(each.losses, GOOD.losses, equal_var=False)
             for each in (FAIR, POOR)}  # fmt: skip
    smaller, larger = sorted(tests, key=lambda name: float(tests[name].pvalue))
    holm = {smaller: 2 * tests[smaller].pvalue}
    holm[larger] = max(tests[larger].pvalue, holm[smaller])
    for name, test in tests.items():
        difference = ranked[name]
        assert difference is not None
        assert difference.p == pytest.approx(holm[name])
        assert (difference.low, difference.high) == pytest.approx(tuple(test.confidence_interval()))
        assert difference.low < difference.value < difference.high
    assert ranked["poor"] is not None
    assert ranked["poor"].value == pytest.approx(np.mean(POOR.losses) - np.mean(GOOD.losses))


def test_the_best_has_nothing_to_be_compared_with() -> None:
    """The best variant, also if it is the only one, has no difference."""
    assert rank([GOOD])[0].difference is None
    assert rank([POOR, GOOD])[0].difference is None


def test_single_seeds_are_not_tested() -> None:
    """A variant with one seed has no test, does not count for the others, and as the best stops all."""
    with_once = {each.variant: each.difference for each in rank([GOOD, ONCE, POOR])}
    assert with_once["once"] is None
    assert with_once["poor"] == rank([GOOD, POOR])[1].difference
    best_once = rank([Ranked("lucky", [0.001], [0.999]), GOOD, POOR])
    assert [each.difference for each in best_once] == [None, None, None]
