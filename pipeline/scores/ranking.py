"""Recipes ranked by their validation loss over seeds; the test set has no part in it."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from pipeline.core.errors import DataError
from pipeline.scores.significance import Difference, holm, seeds_difference


@dataclass(frozen=True)
class Ranked:
    """A variant's place among others.

    Attributes
    ----------
    losses, accuracies : list of float
        On the validation split at the end of each training, by seed; losses in nats.
    difference : Difference or None
        Of the mean loss, this variant's minus the best one's, with the p-value adjusted for the
        number of comparisons; None for the best itself, where a variant has a single seed, and
        where all losses are equal.
    """

    variant: str
    losses: list[float]
    accuracies: list[float]
    difference: Difference | None = None

    @property
    def loss(self) -> float:
        """The mean loss."""
        return statistics.mean(self.losses)


def last_of_each_seed(curve: pd.DataFrame, variant: str) -> Ranked:
    """Return a variant with the last row of each seed in its validation curve.

    Raises
    ------
    DataError
        If the curve has no row.
    """
    if curve.empty:
        raise DataError(
            f"{variant}: was trained without validation images, so it cannot be ranked; give the "
            "data set a validation_size"
        )
    last = curve.groupby("seed", sort=False).tail(1)
    return Ranked(variant, last["loss"].tolist(), last["accuracy"].tolist())


def rank(variants: Sequence[Ranked]) -> list[Ranked]:
    """Return the variants, that with the lowest mean loss first, each compared with it."""
    best, *others = sorted(variants, key=lambda each: each.loss)
    compared = {
        each.variant: seeds_difference(best.losses, each.losses)
        for each in others
        if min(len(each.losses), len(best.losses)) > 1
        and len({*each.losses, *best.losses}) > 1  # else there is nothing to test
    }
    adjusted = dict(zip(compared, holm([each.p for each in compared.values()]), strict=True))
    differences: Mapping[str, Difference] = {
        name: each._replace(p=adjusted[name]) for name, each in compared.items()
    }
    return [best, *(replace(each, difference=differences.get(each.variant)) for each in others)]
