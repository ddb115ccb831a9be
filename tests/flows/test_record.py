from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from dvc_flow.errors import FlowError, RecordError
from dvc_flow.record import (
    branch,
    push_commit,
    push_experiment,
    record_commit,
    record_experiment,
    record_result,
    require_unchanged,
)
from dvc_flow.record import (
    require_recordable as require_of,
)
from dvc_flow.remote import push_outputs
from dvc_flow.repository import Repository
from tests.flows.conftest import Stages, dvc_status, fan_out, plan, run, stage
from tests.helpers import environment

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own

MakeRepository = Callable[[Stages], Path]


def require_recordable(root: Path, *arguments: Any, **more: Any) -> None:
    with chdir(root):
        require_of(Repository(), *arguments, **more)


def git(root: Path, *command: str) -> str:
    done = run("git", *command, cwd=root)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.fixture(autouse=True)
def known_to_git(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in environment().items():
        if name.startswith("GIT_"):
            monkeypatch.setenv(name, value)


MEASURED: Stages = fan_out(1) | {
    "measure": stage(
        "wc -c < join.txt > m.json", ("join.txt",), metrics=[{"m.json": {"cache": False}}]
    )
}


def reproduced(make_repository: MakeRepository) -> Path:
    root = make_repository(MEASURED)
    assert run("dvc", "repro", cwd=root).returncode == 0
    return root


def with_remotes(root: Path, tmp_path: Path) -> Path:
    """Give a repository a git remote, which is returned, and a DVC remote."""
    origin = tmp_path / "origin.git"
    git(root, "init", "--quiet", "--bare", str(origin))
    git(root, "remote", "add", "origin", str(origin))
    assert run("dvc", "remote", "add", "-d", "s", str(tmp_path / "store"), cwd=root).returncode == 0
    git(root, "commit", "--quiet", "--all", "--message", "remote")
    git(root, "push", "--quiet", "--set-upstream", "origin", "HEAD")
    return origin


def test_a_commit_holds_what_the_run_wrote_and_nothing_else(
    make_repository: MakeRepository,
) -> None:
    """The lock file and what git keeps of the outputs are committed; a stray file is not."""
    root = reproduced(make_repository)
    (root / "stray.txt").write_text("mine\n")
    nodes = plan(root)
    commit = record_commit(root, nodes, "Reproduce")
    assert commit is not None
    assert set(git(root, "show", "--name-only", "--format=", "HEAD").split()) == {
        ".gitignore", "dvc.lock", "m.json",
    }  # fmt: skip
    assert git(root, "status", "--porcelain") == "?? stray.txt"
    assert record_commit(root, nodes, "Again") is None


def test_an_experiment_holds_the_workspace(make_repository: MakeRepository) -> None:
    """An experiment is saved under its name, and does not touch branch or workspace."""
    root = reproduced(make_repository)
    before = git(root, "rev-parse", "HEAD")
    assert record_experiment(root, plan(root), "first-try", "Reproduce") == "first-try"
    assert "first-try" in run("dvc", "exp", "list", cwd=root).stdout
    assert git(root, "rev-parse", "HEAD") == before
    assert (root / "m.json").exists()


def test_an_experiment_does_not_pretend_that_other_stages_were_run(
    make_repository: MakeRepository,
) -> None:
    """Saving a part of the graph leaves a stage outside of it as stale as it was."""
    root = reproduced(make_repository)
    git(root, "add", "--all")
    git(root, "commit", "--quiet", "--message", "reproduced")
    (root / "input.txt").write_text("other\n")
    assert run("dvc", "repro", "source", cwd=root).returncode == 0
    assert record_experiment(root, plan(root, "source"), "part", "Reproduce") == "part"
    assert "leaf0" in dvc_status(root)


def test_what_was_edited_meanwhile_is_not_recorded(make_repository: MakeRepository) -> None:
    """A result of other inputs than lie there now is refused, with the stage and the reason."""
    root = reproduced(make_repository)
    (root / "input.txt").write_text("other\n")
    with pytest.raises(RecordError, match="source changed during .*modified input.txt"):
        require_unchanged(plan(root))


def test_results_are_shared_with_their_remotes(
    make_repository: MakeRepository, tmp_path: Path
) -> None:
    """Commit, experiment and data go to the remotes; a clone has them, and restores every stage."""
    root = reproduced(make_repository)
    origin = with_remotes(root, tmp_path)
    nodes = plan(root)
    with chdir(root):
        push_outputs(Repository(), nodes)
    assert record_experiment(root, nodes, "shared", "Reproduce") == "shared"
    push_experiment(root, "shared")
    clone = tmp_path / "clone"
    git(root, "clone", "--quiet", str(origin), str(clone))
    assert "shared" in run("dvc", "exp", "list", "origin", cwd=clone).stdout
    output = run("dvc", "repro", "--pull", "--allow-missing", cwd=clone).stdout
    assert output.count("is cached - skipping run") == 4
    assert "Running stage" not in output
    commit = record_commit(root, nodes, "Reproduce")
    push_commit(root)
    git(clone, "clean", "--force", "--quiet")
    git(clone, "pull", "--quiet")
    assert git(clone, "rev-parse", "--short", "HEAD") == commit
    assert (clone / "m.json").read_bytes() == (root / "m.json").read_bytes()


def test_a_branch_that_moved_on_is_not_overwritten(
    make_repository: MakeRepository, tmp_path: Path
) -> None:
    """A push that would drop somebody's commit fails, in one line; the next run makes up for it."""
    root = reproduced(make_repository)
    origin = with_remotes(root, tmp_path)
    clone = tmp_path / "clone"
    git(root, "clone", "--quiet", str(origin), str(clone))
    git(clone, "commit", "--quiet", "--allow-empty", "--message", "somebody's")
    git(clone, "push", "--quiet")
    record_commit(root, plan(root), "Reproduce")
    with pytest.raises(RecordError, match="git push: .*rejected") as error:
        push_commit(root)
    assert "\n" not in str(error.value)
    assert "git pull --rebase, and run again" in str(error.value)
    assert git(origin, "log", "-1", "--format=%s", branch(root)) == "somebody's"
    git(root, "pull", "--quiet", "--rebase")
    told = record_result(root, plan(root), "commit", title="Again", name="x", push=True)
    assert told == "nothing new to commit"
    assert git(origin, "log", "-1", "--format=%s", branch(root)) == "Reproduce"


def dirty(root: Path) -> None:
    (root / "input.txt").write_text("other\n")


def detached(root: Path) -> None:
    git(root, "checkout", "--quiet", "--detach")


def no_git_remote(root: Path) -> None:
    run("dvc", "remote", "add", "-d", "s", "/nowhere", cwd=root)
    git(root, "commit", "--quiet", "--all", "--message", "remote")


def nobody(root: Path) -> None:
    git(root, "config", "user.useConfigOnly", "true")


@pytest.mark.parametrize(
    ("damage", "push", "message"),
    [
        (dirty, False, "1 uncommitted change, such as input.txt; commit or stash"),
        (detached, False, "HEAD is detached, .*check out a branch"),
        (lambda root: None, True, "DVC has no remote; .*dvc remote add --default"),
        (no_git_remote, True, "no git remote 'origin' .*git remote add origin"),
        (nobody, False, "git does not know who commits"),
    ],
)
def test_what_cannot_be_recorded_is_refused_before_the_run(
    make_repository: MakeRepository,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    push: bool,
    message: str,
) -> None:
    """A dirty or detached checkout, a missing remote or author is told in one line."""
    root = make_repository(fan_out(1))
    require_recordable(root, "commit")
    damage(root)
    if damage is nobody:
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.delenv(f"GIT_{role}_NAME")
            monkeypatch.delenv(f"GIT_{role}_EMAIL")
        monkeypatch.setenv("EMAIL", "")
    with pytest.raises(FlowError, match=message) as error:
        require_recordable(root, "commit", push=push)
    assert "\n" not in str(error.value)


def test_an_experiment_takes_a_dirty_or_detached_checkout(
    make_repository: MakeRepository,
) -> None:
    """What a commit refuses, an experiment takes along."""
    root = make_repository(fan_out(1))
    dirty(root)
    detached(root)
    require_recordable(root, "experiment")


def test_pulling_needs_a_remote_too(make_repository: MakeRepository) -> None:
    """--pull without a remote is refused."""
    with pytest.raises(RecordError, match="DVC has no remote"):
        require_recordable(make_repository(fan_out(1)), None, pull=True)


def test_a_repository_without_a_commit_is_refused(tmp_path: Path) -> None:
    """There is nothing to record a result on."""
    for command in (("git", "init", "-q"), ("dvc", "init", "-q")):
        assert run(*command, cwd=tmp_path).returncode == 0
    with pytest.raises(RecordError, match="no git commit"):
        require_recordable(tmp_path, "experiment")


@pytest.mark.parametrize(
    ("address", "message"),
    [
        (None, "there is no git remote 'origin'"),
        ("https://me:secret@example.org/x.git", "set-url origin https://example.org/x.git"),
        ("https://token@example.org/x.git", "set-url origin https://example.org/x.git"),
        ("git@example.org:x.git", ""),
        ("ssh://git@example.org/x.git", ""),
        ("https://example.org/x.git", ""),
    ],
)
def test_what_other_machines_cannot_clone_is_not_deployed(
    make_repository: MakeRepository, address: str | None, message: str
) -> None:
    """No remote, or one whose address holds credentials, is refused, and so is a detached HEAD."""
    root = make_repository({})
    if address:
        git(root, "remote", "add", "origin", address)
    done = run("dvc-flow", "deployable", cwd=root)
    assert done.returncode == bool(message)
    assert message in done.stderr
    assert "secret" not in done.stderr
    git(root, "checkout", "--quiet", "--detach")
    assert "HEAD is detached" in run("dvc-flow", "deployable", cwd=root).stderr
