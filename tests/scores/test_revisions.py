import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from pipeline.core.errors import DataError
from pipeline.scores.revisions import Measured, Revisions, parse_metrics
from tests.helpers import run
from tests.history import commit, save, set_params

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own

NET = ("digits", "net")


def read(root: Path, name: str) -> Measured:
    return Revisions(root).read(name)[NET]


def test_all_of_todays_results_come_from_git(history: Path) -> None:
    """Metrics, profile and mistakes of a commit are read from git, without DVC's cache."""
    shutil.rmtree(history / ".dvc/cache")
    measured = read(history, "base")
    assert measured.metrics == {"n": 1000, "errors": 20, "accuracy": 0.98}
    assert measured.profile == {"evaluation_images_per_second": 2000.0, "peak_memory_mb": 70.0}
    assert measured.predictions is not None
    assert measured.predictions.accuracies == [0.98]
    assert measured.inputs["variants.net.wrong"] == 20
    assert measured.inputs["datasets.digits.preprocess.images"] == 1000
    assert set(measured.inputs) >= {"pipeline/measure.py"}


def test_results_of_version_0_1_are_read_from_their_old_places(history: Path) -> None:
    """A commit of version 0.1 gives the same as one of today with the same results."""
    old, new = read(history, "old"), read(history, "base")
    assert old.predictions is not None
    assert new.predictions is not None
    assert old.metrics == new.metrics
    assert old.profile == {"evaluation_images_per_second": 1500.0, "peak_memory_mb": 75.0}
    assert old.predictions.test_set == new.predictions.test_set != ""
    assert old.predictions.images == new.predictions.images
    pd.testing.assert_frame_equal(old.predictions.mistakes, new.predictions.mistakes)


def test_old_predictions_come_from_a_remote(history: Path, tmp_path: Path) -> None:
    """Old predictions that the cache lacks are fetched; without a remote there are none."""
    run("dvc", "remote", "add", "--local", "-d", "store", str(tmp_path / "store"), cwd=history)
    run("git", "checkout", "-q", "old", cwd=history)
    run("dvc", "push", "-q", cwd=history)
    run("git", "checkout", "-q", "smaller", cwd=history)
    shutil.rmtree(history / ".dvc/cache")
    shutil.rmtree(history / "predictions")
    assert read(history, "old").predictions is not None
    shutil.rmtree(tmp_path / "store")
    shutil.rmtree(history / ".dvc/cache", ignore_errors=True)
    assert read(history, "old").predictions is None


def test_the_workspace_is_a_revision(history: Path) -> None:
    """Results in the workspace are read as they are, committed or not."""
    set_params(history, images=500, seed=0, wrong=7)
    run("dvc", "repro", "-q", cwd=history)
    measured = read(history, "workspace")
    assert measured.metrics["errors"] == 7
    assert measured.predictions is not None
    assert len(measured.predictions.mistakes) == 7


def test_a_merge_conflict_is_named(history: Path) -> None:
    """A metrics file of the workspace that holds a conflict is named, with its line."""
    path = next((history / "results").rglob("metrics.json"))
    path.write_text("{\n<<<<<<< HEAD\n=======\n>>>>>>> other\n}\n")
    with pytest.raises(DataError, match=r"metrics\.json: holds a merge conflict, in line 2"):
        read(history, "workspace")


def test_an_experiment_is_a_revision(history: Path) -> None:
    """A DVC experiment is read by its name."""
    set_params(history, images=500, seed=0, wrong=20)
    run("dvc", "repro", "-q", cwd=history)
    run("dvc", "exp", "save", "-n", "fewer-mistakes", cwd=history)
    run("git", "checkout", "-qf", "base", cwd=history)
    assert read(history, "fewer-mistakes").metrics["errors"] == 20
    with pytest.raises(DataError, match="fewer: is not a revision, branch, tag or experiment"):
        Revisions(history).resolve("fewer")


def test_code_in_a_folder_counts_as_an_input(history: Path) -> None:
    """The hash of a folder of code is an input, as dvc.lock has it."""
    module = history / "pipeline/core/params.py"
    module.parent.mkdir()
    text = (history / "dvc.yaml").read_text()
    (history / "dvc.yaml").write_text(
        text.replace("    deps:\n", "    deps:\n      - pipeline/core\n")
    )
    hashes = []
    for tag in ("first", "second"):
        module.write_text(f"# {tag}\n")
        commit(history, tag, images=500, seed=0, wrong=20)
        hashes.append(read(history, tag).inputs["pipeline/core"])
    assert hashes[0] != hashes[1]
    assert all(each.endswith(".dir") for each in hashes)


def without_results(root: Path) -> None:
    shutil.rmtree(root / "results")


def with_broken_params(root: Path) -> None:
    (root / "params.yaml").write_text("variants: [")


def with_broken_metrics(root: Path) -> None:
    (root / "results/digits/net/metrics.json").write_text("{")


def with_broken_profile(root: Path) -> None:
    (root / "results/digits/net/profile.json").write_text("[" * 100_000)


def with_broken_mistakes(root: Path) -> None:
    (root / "results/digits/net/mistakes.csv").write_text("seed,index\n0,1\n")


def with_too_many_mistakes(root: Path) -> None:
    path = root / "results/digits/summary.json"
    path.write_text(json.dumps({"images_per_class": {"test": [1] * 10}}))


def without_a_lock(root: Path) -> None:
    (root / "dvc.lock").unlink()


def with_a_lock_without_keys(root: Path) -> None:
    (root / "dvc.lock").write_text("stages: {evaluate@digits-net: 5}\n")


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (without_results, "bad: has no metrics; reproduce and commit there"),
        (with_broken_params, "bad: params.yaml is not valid YAML"),
        (with_broken_metrics, "bad: results/digits/net/metrics.json cannot be read"),
        (with_broken_profile, "bad: results/digits/net/profile.json cannot be read"),
        (with_broken_mistakes, "bad: mistakes cannot be read"),
        (with_too_many_mistakes, "bad: mistakes cannot be read .more mistakes than images"),
        (without_a_lock, "bad: has no dvc.lock"),
        (with_a_lock_without_keys, "bad: dvc.lock: evaluate@digits-net: expected keys with values"),
    ],
)
def test_damage_at_a_revision_is_named(
    history: Path, damage: Callable[[Path], None], reason: str
) -> None:
    """Damaged or missing files are reported with the revision and the file."""
    damage(history)
    save(history, "bad")
    with pytest.raises(DataError, match=reason):
        Revisions(history).read("bad")


@pytest.mark.parametrize("missing", ["profile.json", "mistakes.csv", "../summary.json"])
def test_what_a_comparison_can_do_without_may_be_missing(history: Path, missing: str) -> None:
    """Without profile, mistakes or summary the metrics are still read."""
    (history / "results/digits/net" / missing).unlink()
    if missing == "../summary.json":
        for variant in ("net", "other"):
            (history / f"results/digits/{variant}/mistakes.csv").unlink()
    save(history, "less")
    measured = read(history, "less")
    assert measured.metrics["n"] == 500
    assert measured.profile == {} or missing != "profile.json"
    assert measured.predictions is None or missing == "profile.json"


@pytest.mark.parametrize(
    "text",
    [
        "3", '{"n": 0, "errors": 0}', '{"n": 3, "errors": 4}', '{"n": 3}', '{"n": 3, "errors": NaN}',
        '{"n": "3", "errors": 0}', '{"n": 3, "errors": -1}',
    ],
)  # fmt: skip
def test_impossible_counts_are_rejected(text: str) -> None:
    """Metrics without counts, or with more errors than images, are rejected by name."""
    with pytest.raises(DataError, match=r"HEAD: metrics\.json cannot be read"):
        parse_metrics("HEAD", Path("metrics.json"), text)


def test_a_shallow_clone_says_how_to_get_the_rest(history: Path, tmp_path: Path) -> None:
    """For a revision that a shallow clone lacks, the error suggests a fix."""
    clone = tmp_path / "clone"
    run("git", "clone", "-q", "--depth", "1", f"file://{history}", str(clone), cwd=tmp_path)
    with pytest.raises(DataError, match="HEAD~1: .*git fetch --unshallow"):
        Revisions(clone).resolve("HEAD~1")


def test_an_option_is_not_a_revision(history: Path) -> None:
    """A name that looks like an option of git is not taken for one."""
    with pytest.raises(DataError, match="--all: is not a revision"):
        Revisions(history).resolve("--all")


def test_a_folder_without_dvc_is_rejected(tmp_path: Path) -> None:
    """Outside a DVC repository, the error says where to run."""
    with pytest.raises(DataError, match="is not a DVC repository; run from the project's root"):
        Revisions(tmp_path)
