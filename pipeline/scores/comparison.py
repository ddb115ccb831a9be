"""Variants compared with each other, and revisions with a baseline."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Any, NamedTuple

from pipeline.core.errors import DataError
from pipeline.scores.ensembles import Ensemble
from pipeline.scores.load import Result
from pipeline.scores.predictions import Predictions
from pipeline.scores.revisions import Key, Measured, Revisions
from pipeline.scores.significance import (
    Difference,
    Paired,
    compare_predictions,
    holm,
    paired_difference,
    right_and_all,
    unpaired_difference,
    verdict,
)


class Pair(NamedTuple):
    """Two variants on the same test images, the one with fewer errors first.

    ``paired`` compares the second one with the first; ``p`` is adjusted for the number of pairs.
    """

    first: str
    second: str
    paired: Paired
    p: float

    @property
    def verdict(self) -> str:
        """The second one is ``better``, ``worse``, or there is ``no evidence of a difference``."""
        return verdict(self.paired.difference.value, self.p)


def by_errors(results: Sequence[Result]) -> list[Result]:
    """Return the results, the most accurate one first."""
    return sorted(results, key=lambda each: each.metrics["errors"])


def compare_pairs(results: Sequence[Result]) -> list[Pair]:
    """Compare each variant with each other one."""
    couples = list(combinations(by_errors(results), 2))
    compared = [
        compare_predictions(first.predictions, second.predictions) for first, second in couples
    ]
    adjusted = holm([paired.difference.p for paired in compared])
    return [
        Pair(first.variant, second.variant, paired, p)
        for (first, second), paired, p in zip(couples, compared, adjusted, strict=True)
    ]


class BestMember(NamedTuple):
    """An ensemble compared with the member that makes the fewest errors, image by image."""

    ensemble: str
    models: int
    member: str
    errors: int
    paired: Paired


def compare_with_members(
    result: Result, ensemble: Ensemble, members: Sequence[Result]
) -> BestMember:
    """Compare an ensemble's `result` with its best member, of the `members`' results."""
    by_name = {each.variant: each.predictions for each in members}
    mistakes = {
        f"{variant}, seed {seed}": by_name[variant].mistakes_of(seed)
        for variant, seed in ensemble.models
    }
    best = min(mistakes, key=lambda name: len(mistakes[name]))
    wrong = result.predictions.first_mistakes
    fixed, broken = sorted(mistakes[best] - wrong), sorted(wrong - mistakes[best])
    difference = paired_difference(result.predictions.test_images, len(fixed), len(broken))
    return BestMember(
        result.variant, len(mistakes), best, len(mistakes[best]),
        Paired(difference, fixed, broken, over_seeds=False),
    )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A variant at a revision, compared with the baseline.

    Attributes
    ----------
    before, after : dict
        The metrics of both.
    difference : Difference
        In accuracy, revision minus baseline; its p-value is that of this test alone.
    adjusted_p : float
        The p-value adjusted for the number of comparisons.
    over_seeds, fixed, broken
        As in `Paired`; no images if they were not compared pair by pair.
    unpaired_because : str
        Why they were not; empty if they were.
    changed : list of str
        Parameters with both values, and files of code, that differ.
    """

    dataset: str
    variant: str
    baseline: str
    revision: str
    before: dict[str, Any]
    after: dict[str, Any]
    difference: Difference
    adjusted_p: float
    over_seeds: bool
    unpaired_because: str
    fixed: list[int]
    broken: list[int]
    changed: list[str]

    @property
    def verdict(self) -> str:
        """``better``, ``worse`` or ``no evidence of a difference``."""
        return verdict(self.difference.value, self.adjusted_p)


def compare(key: Key, names: tuple[str, str], before: Measured, after: Measured) -> Comparison:
    """Compare the results of a variant at a baseline and a revision, whose `names` are given."""
    first, second = before.predictions, after.predictions
    same = before.digest is not None and before.digest == after.digest
    reason = "" if same else why_unpaired(names, first, second)
    if same:
        paired = Paired(paired_difference(before.metrics["n"], 0, 0), [], [], False)
    elif reason or first is None or second is None:
        counts = right_and_all(before.metrics) + right_and_all(after.metrics)
        paired = Paired(unpaired_difference(*counts), [], [], False)
    else:
        paired = compare_predictions(first, second)
    return Comparison(
        *key, *names, before.metrics, after.metrics, paired.difference, paired.difference.p,
        paired.over_seeds, reason, paired.fixed, paired.broken,
        changed_inputs(before.inputs, after.inputs),
    )  # fmt: skip


def why_unpaired(
    names: tuple[str, str], first: Predictions | None, second: Predictions | None
) -> str:
    """Return why two revisions cannot be compared image by image; empty if they can."""
    if first is None or second is None:
        lacking = [
            name for name, table in zip(names, (first, second), strict=True) if table is None
        ]
        return f"no predictions of {' and '.join(lacking)} in git, DVC's cache or remote"
    if first.test_images != second.test_images:
        return (
            f"{names[0]} has {first.test_images:,} test images, "
            f"{names[1]} has {second.test_images:,}"
        )
    known = {first.test_set, second.test_set} - {""}
    return "" if len(known) < 2 else "the test sets have different labels"


def changed_inputs(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return what differs: parameters with both values, then files of code."""
    changed = [name for name in before | after if before.get(name) != after.get(name)]
    code = [name for name in changed if name.startswith("pipeline/")]
    params = [name for name in changed if name not in code]
    return [f"{name}: {before.get(name)} → {after.get(name)}" for name in params] + code


class Outcome(NamedTuple):
    """Revisions compared with the first one that could be read.

    ``comparisons`` have p-values adjusted for their number, ``notes`` tell of variants that only
    one of two revisions has, ``errors`` why a revision could not be read, and ``measured`` has the
    results at each of the others, by its name.
    """

    comparisons: list[Comparison]
    notes: list[str]
    errors: list[str]
    measured: dict[str, dict[Key, Measured]]


def compare_revisions(revisions: Revisions, names: Sequence[str]) -> Outcome:
    """Compare each revision with the first one."""
    notes: list[str] = []
    errors: list[str] = []
    measured: dict[str, dict[Key, Measured]] = {}
    for name in dict.fromkeys(names):
        try:
            measured[name] = revisions.read(name)
        except DataError as error:
            errors.append(str(error))
    comparisons: list[Comparison] = []
    baseline, *others = measured or [""]
    for name in others:
        before, after = measured[baseline], measured[name]
        notes += [f"{' / '.join(key)}: new at {name}" for key in sorted(after.keys() - before)]
        notes += [f"{' / '.join(key)}: not at {name}" for key in sorted(before.keys() - after)]
        comparisons += [
            compare(key, (baseline, name), before[key], after[key])
            for key in before
            if key in after
        ]
    p_values = holm([each.difference.p for each in comparisons])
    adjusted = [replace(each, adjusted_p=p) for each, p in zip(comparisons, p_values, strict=True)]
    return Outcome(adjusted, notes, errors, measured)
