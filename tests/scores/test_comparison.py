import re
import shutil
from pathlib import Path

import pandas as pd
import pytest
from statsmodels.stats.contingency_tables import mcnemar

from pipeline.scores.comparison import (
    Comparison,
    Outcome,
    compare_pairs,
    compare_revisions,
    compare_with_members,
)
from pipeline.scores.ensembles import Ensemble
from pipeline.scores.revisions import Revisions
from tests.helpers import run
from tests.history import commit, save
from tests.scores.helpers import make_ensemble, make_result, misread

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own


def compare(root: Path, *names: str) -> Outcome:
    return compare_revisions(Revisions(root), names)


def by_variant(root: Path, *names: str) -> dict[tuple[str, str], Comparison]:
    outcome = compare(root, *names)
    assert outcome.errors == []
    return {(each.variant, each.revision): each for each in outcome.comparisons}


def test_every_pair_is_compared_and_corrected_for_their_number() -> None:
    """Three variants make three pairs, with p-values adjusted by Holm's method."""
    results = [make_result(str(count), count, misread(count)) for count in (60, 10, 16)]
    pairs = compare_pairs(results)
    assert [(pair.first, pair.second) for pair in pairs] == [
        ("10", "16"), ("10", "60"), ("16", "60"),
    ]  # fmt: skip
    alone = [pair.paired.difference.p for pair in pairs]
    assert alone[0] == pytest.approx(2 / 2**6)
    assert [pair.p for pair in pairs] == pytest.approx([alone[0], 3 * alone[1], 2 * alone[2]])
    assert [pair.verdict for pair in pairs] == ["worse"] * 3


def test_one_variant_has_no_pair() -> None:
    """A single variant has nothing to be compared with."""
    assert compare_pairs([make_result("only", 1)]) == []


def test_an_ensemble_is_compared_with_its_best_member() -> None:
    """Of all models the one with the fewest errors is compared, image by image, by McNemar's test."""
    several = pd.concat([misread(30), misread(12).assign(seed=4), misread(9).assign(seed=9)])
    members = [make_result("net", 15, several, seeds=3), make_result("other", 20, misread(20))]
    listed = [{"variant": "other", "seeds": [0]}, {"variant": "net", "seeds": [0, 4]}]
    together = misread(5)
    together.loc[[100, 150], "prediction"] = 1
    found = compare_with_members(
        make_ensemble("both", 7, together), Ensemble.model_validate({"members": listed}), members
    )
    assert (found.ensemble, found.models) == ("both", 3)
    assert (found.member, found.errors) == ("net, seed 4", 12)
    assert (found.paired.fixed, found.paired.broken) == (list(range(5, 12)), [100, 150])
    assert not found.paired.over_seeds
    assert found.paired.difference.value == pytest.approx(5 / 200)
    expected = mcnemar([[186, 2], [7, 5]], exact=True).pvalue
    assert found.paired.difference.p == pytest.approx(expected)


def test_another_seed_is_no_evidence_and_a_regression_is_worse(history: Path) -> None:
    """Each revision is compared with the first one, with the images that flipped."""
    found = by_variant(history, "base", "seed", "regression")
    assert {key: each.verdict for key, each in found.items()} == {
        ("net", "seed"): "no evidence of a difference",
        ("other", "seed"): "no evidence of a difference",
        ("net", "regression"): "worse",
        ("other", "regression"): "no evidence of a difference",
    }
    worse = found["net", "regression"]
    assert len(worse.broken) - len(worse.fixed) == 70
    assert worse.changed == ["variants.net.wrong: 20 → 90"]
    assert worse.adjusted_p == pytest.approx(4 * worse.difference.p)
    assert found["other", "seed"].fixed == found["other", "seed"].broken == []


def test_an_improvement_is_better(history: Path) -> None:
    """A revision with significantly fewer errors is better."""
    assert by_variant(history, "regression", "base")["net", "base"].verdict == "better"


def test_commits_from_before_the_move_are_compared_with_later_ones(history: Path) -> None:
    """Version 0.1's commits are compared image by image with commits in today's layout."""
    found = by_variant(history, "old", "old_regression", "base", "regression")
    for revision in ("old_regression", "regression"):
        worse = found["net", revision]
        assert (worse.verdict, worse.unpaired_because) == ("worse", "")
        assert len(worse.broken) - len(worse.fixed) == 70
    same = found["net", "base"]
    assert (same.unpaired_because, same.fixed, same.broken) == ("", [], [])
    assert same.difference.value == 0


def test_changed_code_is_named(history: Path) -> None:
    """Changed files of code are named after the changed parameters."""
    with open(history / "pipeline/measure.py", "a") as file:
        file.write("# touched\n")
    commit(history, "touched", images=500, seed=2, wrong=90)
    found = by_variant(history, "smaller", "touched")
    assert found["net", "touched"].changed == ["variants.net.seed: 0 → 2", "pipeline/measure.py"]
    assert found["other", "touched"].changed == ["pipeline/measure.py"]


def test_without_predictions_the_counts_are_compared(history: Path) -> None:
    """If old predictions are not available, the reason is given and the counts are compared."""
    shutil.rmtree(history / ".dvc/cache")
    shutil.rmtree(history / "predictions")
    worse = by_variant(history, "old", "regression")["net", "regression"]
    assert worse.unpaired_because == "no predictions of old in git, DVC's cache or remote"
    assert (worse.verdict, worse.fixed, worse.broken) == ("worse", [], [])


def test_equal_predictions_need_not_be_available(history: Path) -> None:
    """Two revisions whose predictions have the same hash differ in no image."""
    shutil.rmtree(history / ".dvc/cache")
    shutil.rmtree(history / "predictions")
    other = by_variant(history, "old", "old_regression")["other", "old_regression"]
    assert (other.unpaired_because, other.difference.value, other.difference.p) == ("", 0, 1)


def test_test_sets_of_another_size_are_not_paired(history: Path) -> None:
    """If the test sets have different sizes, the reason is given and the counts are compared."""
    found = by_variant(history, "base", "smaller")
    assert {each.unpaired_because for each in found.values()} == {
        "base has 1,000 test images, smaller has 500"
    }


def test_test_sets_with_other_labels_are_not_paired(history: Path) -> None:
    """If the test sets have the same size but other labels, images are not compared."""
    path = history / "results/digits/summary.json"
    digest = path.read_text().partition('"test_labels": "')[2][:64]
    path.write_text(path.read_text().replace(digest, "0" * 64))
    lock = history / "dvc.lock"  # without the hashes, by which the predictions are known as equal
    lock.write_text(re.sub("md5: [0-9a-f]{32}$", "md5: null", lock.read_text(), flags=re.MULTILINE))
    save(history, "relabelled")
    found = by_variant(history, "smaller", "relabelled")
    assert {each.unpaired_because for each in found.values()} == {
        "the test sets have different labels"
    }


def test_a_variant_that_one_revision_lacks_is_noted(history: Path) -> None:
    """A variant that is new or gone is noted, and the others are compared."""
    shutil.rmtree(history / "results/digits/net")
    save(history, "gone")
    outcome = compare(history, "smaller", "gone", "seed")
    assert outcome.notes == ["digits / net: not at gone"]
    assert outcome.errors == []
    assert [(each.variant, each.revision) for each in outcome.comparisons] == [
        ("other", "gone"), ("net", "seed"), ("other", "seed"),
    ]  # fmt: skip
    assert compare(history, "gone", "smaller").notes == ["digits / net: new at smaller"]


def test_an_unreadable_baseline_is_replaced_by_the_next_revision(history: Path) -> None:
    """The revisions are compared with the first one that can be read."""
    outcome = compare(history, "nosuch", "base", "regression")
    assert {(each.baseline, each.revision) for each in outcome.comparisons} == {
        ("base", "regression")
    }
    assert len(outcome.errors) == 1
    assert outcome.errors[0].startswith("nosuch: is not a revision")


def test_if_no_revision_can_be_read_nothing_is_compared(history: Path) -> None:
    """If no revision can be read, each one is reported."""
    outcome = compare(history, "nosuch", "nothing")
    assert (outcome.comparisons, outcome.measured) == ([], {})
    assert [error.partition(":")[0] for error in outcome.errors] == ["nosuch", "nothing"]


def test_an_experiment_is_compared(history: Path) -> None:
    """A DVC experiment is compared by its name, whatever it is based on."""
    commit(history, "better", images=500, seed=0, wrong=20)
    run("dvc", "exp", "save", "-n", "fewer-mistakes", "--force", cwd=history)
    run("git", "checkout", "-q", "smaller", cwd=history)
    found = by_variant(history, "smaller", "fewer-mistakes")
    assert found["net", "fewer-mistakes"].verdict == "better"
