"""Releases in real repositories of git and DVC: versions, stages, and refusals."""

import re
from pathlib import Path
from typing import Any

import gto.api
import pytest
from ruamel.yaml import YAML

from pipeline import release
from pipeline.core import paths
from pipeline.core.errors import DataError
from tests.answers.helpers import run_command
from tests.helpers import ROOT, assert_one_clear_line, environment, run
from tests.history import set_params

pytestmark = pytest.mark.slow  # they run git and DVC in processes of their own


@pytest.fixture
def named(history: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository with a history of results, and someone who commits."""
    for name, value in environment().items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)
    return history


def call(*arguments: str) -> None:
    release.main(release.parse_arguments(["digits", "net", *arguments]))


def at(root: Path, revision: str) -> None:
    run("git", "checkout", "-q", revision, cwd=root)


def tags(root: Path) -> list[str]:
    """Return the tags of releases."""
    return sorted(run("git", "tag", "--list", "digits-*", cwd=root).split())


def commit_of(root: Path, revision: str) -> str:
    return run("git", "rev-parse", f"{revision}^{{commit}}", cwd=root).strip()


def test_the_first_release_has_version_and_stage(
    named: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The first release is v0.0.1 and gets the stage; GTO finds it there."""
    at(named, "base")
    call()
    assert tags(named) == ["digits-net#production#1", "digits-net@v0.0.1"]
    assert {commit_of(named, each) for each in tags(named)} == {commit_of(named, "base")}
    [found] = gto.api.find_versions_in_stage(str(named), "digits-net", "production")
    assert found.version == "v0.0.1"
    printed = capsys.readouterr().out
    assert "digits-net: nothing is in production yet" in printed
    assert "digits-net: v0.0.1 is in production\n" in printed
    assert printed.endswith("share it: git push --tags\n")


@pytest.mark.parametrize(("before", "after"), [("base", "seed"), ("regression", "base")])
def test_an_equal_or_better_model_is_promoted(
    named: Path, capsys: pytest.CaptureFixture[str], before: str, after: str
) -> None:
    """A model that is better, or of which there is no evidence that it differs, is promoted."""
    at(named, before)
    call()
    at(named, after)
    if after == "base":  # a model may be older than the one in the stage
        run("git", "commit", "-q", "--allow-empty", "-m", "again", cwd=named)
    call()
    assert tags(named) == [
        "digits-net#production#1", "digits-net#production#2", "digits-net@v0.0.1",
        "digits-net@v0.0.2",
    ]  # fmt: skip
    [found] = gto.api.find_versions_in_stage(str(named), "digits-net", "production")
    assert found.commit_hexsha == commit_of(named, "HEAD")
    verdict = "better (+7.00 points" if after == "base" else "no evidence of a difference (-0.10"
    told = f"HEAD beside {commit_of(named, before)[:10]}, which is in production: {verdict}"
    assert told in capsys.readouterr().out


def test_a_worse_model_is_refused(named: Path) -> None:
    """A significantly worse model ends with one clear line, and no tag."""
    at(named, "base")
    call()
    before = tags(named)
    at(named, "regression")
    done = run_command("release", "digits", "net", cwd=named)
    assert_one_clear_line(done, "digits-net: is worse than what is in production, and stays as it")
    assert re.search(r"HEAD beside \w{10}, .*: worse \(-7.00 points, p = [\d.e-]+\)", done.stdout)
    assert tags(named) == before


def test_another_stage_does_not_compare(named: Path) -> None:
    """A stage of its own takes a worse model, and the other stage keeps its own."""
    at(named, "base")
    call()
    at(named, "regression")
    call("--stage", "trial")
    in_stage = {
        stage: gto.api.find_versions_in_stage(str(named), "digits-net", stage)[0].commit_hexsha
        for stage in ("production", "trial")
    }
    assert in_stage == {
        "production": commit_of(named, "base"), "trial": commit_of(named, "regression"),
    }  # fmt: skip


def test_uncommitted_changes_are_refused(named: Path) -> None:
    """A release is a commit: with changes that are not committed there is none."""
    at(named, "base")
    set_params(named, seed=5, wrong=20)
    done = run_command("release", "digits", "net", cwd=named)
    assert_one_clear_line(
        done, "digits / net: a release is a commit", "params.yaml", "commit first"
    )
    assert tags(named) == []


def test_head_that_is_released_says_so(named: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Released again, the same commit says that it is in the stage, and gets no other tag."""
    at(named, "base")
    call()
    before = tags(named)
    capsys.readouterr()
    call()
    assert capsys.readouterr().out == "digits-net: HEAD is in production already\n"
    assert tags(named) == before


def test_a_released_commit_gets_a_second_stage(named: Path) -> None:
    """A commit that has a version keeps it when it gets another stage."""
    at(named, "base")
    call("--stage", "trial")
    call()
    assert tags(named) == [
        "digits-net#production#2", "digits-net#trial#1", "digits-net@v0.0.1",
    ]  # fmt: skip


def test_an_older_version_needs_a_commit_of_its_own(named: Path) -> None:
    """A version before the one in the stage is refused, and promoted as a new commit."""
    for revision in ("base", "seed"):
        at(named, revision)
        call()
    at(named, "base")
    before = tags(named)
    with pytest.raises(DataError, match="HEAD is v0.0.1, and v0.0.2 is in production"):
        call()
    assert tags(named) == before
    run("git", "commit", "-q", "--allow-empty", "-m", "again", cwd=named)
    call()
    [found] = gto.api.find_versions_in_stage(str(named), "digits-net", "production")
    assert (found.version, found.commit_hexsha) == ("v0.0.3", commit_of(named, "HEAD"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["digits", "nosuch"], "HEAD: has no results of digits / nosuch; reproduce and commit"),
        (["digits", "net", "--stage", "a stage!"], "digits-net: cannot be released"),
    ],
)
def test_bad_input_is_one_clear_line(named: Path, arguments: list[str], message: str) -> None:
    """An unknown variant, and a stage that cannot be a tag, end with one line and no tag."""
    at(named, "base")
    assert_one_clear_line(run_command("release", *arguments, cwd=named), message)
    assert tags(named) == []


def test_outside_a_repository_one_line_says_so(tmp_path: Path) -> None:
    """In a folder without DVC, or without git, one line says so."""
    assert_one_clear_line(
        run_command("release", "digits", "net", cwd=tmp_path), "is not a DVC repository"
    )
    (tmp_path / ".dvc").mkdir()
    done = run_command("release", "digits", "net", cwd=tmp_path)
    assert_one_clear_line(done, "digits / net: a release is a commit", "not a git repository")


def test_tags_are_pushed_if_wanted(named: Path, tmp_path: Path) -> None:
    """With `--push` the remote has the tags."""
    run("git", "init", "-q", "--bare", str(tmp_path / "remote"), cwd=tmp_path)
    run("git", "remote", "add", "origin", str(tmp_path / "remote"), cwd=named)
    at(named, "base")
    call("--push")
    assert tags(tmp_path / "remote") == tags(named) != []


def artifacts() -> dict[str, Any]:
    content: dict[str, Any] = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())
    found: dict[str, Any] = content["artifacts"]
    return found


def test_dvc_yaml_names_every_model() -> None:
    """The artifacts of dvc.yaml are the models of each data set and variant that is run."""
    run_list = YAML(typ="safe").load((ROOT / "params.yaml").read_text())["run"]
    assert {name: row["path"] for name, row in artifacts().items()} == {
        release.artifact_name(dataset, variant): str(paths.models(dataset, variant))
        for dataset in run_list["datasets"]
        for variant in run_list["variants"]
    }
    assert {row["type"] for row in artifacts().values()} == {"model"}
    assert all(row["desc"] for row in artifacts().values())


def test_names_have_no_underscores() -> None:
    """Names of artifacts have no underscores, which GTO does not take."""
    assert release.artifact_name("mnist_record", "alexnet_norm") == "mnist-record-alexnet-norm"
    assert all("_" not in name for name in artifacts())
