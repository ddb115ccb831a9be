"""What a run with --pull fetches and makes, in real DVC repositories whose remote is a folder."""

import shutil
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest
from dvc.dvcfile import FileMixin

from dvc_flow.engine import Outcome
from dvc_flow.errors import GraphError
from dvc_flow.remote import pull_data, push_outputs
from dvc_flow.repository import Repository
from tests.flows.conftest import CLEAN, Stages, dvc_status, engine, plan, run, stage

pytestmark = pytest.mark.slow  # they run DVC, git or TensorFlow in processes of their own

MakeRepository = Callable[[Stages], Path]

# The last stage depends on a folder above the outputs of the two before it; one part is in git.
FOLDER: Stages = {
    "one": stage("mkdir -p parts && cat input.txt > parts/one", ("input.txt",), "parts/one"),
    "two": stage("mkdir -p parts/two && cp input.txt parts/two", ("input.txt",), "parts/two"),
    "sum": stage("cat parts/one parts/two/* > sum", ("parts",), "sum"),
}


@pytest.fixture
def clone(make_repository: MakeRepository, tmp_path: Path) -> Path:
    """A fresh clone of a repository whose outputs are all in the remote, and nowhere else."""
    root = make_repository(FOLDER)
    for command in (
        ("dvc", "repro"),
        ("dvc", "remote", "add", "-d", "store", str(tmp_path / "store")),
        ("git", "add", "-A"),
        ("git", "commit", "-qm", "second"),
    ):
        assert run(*command, cwd=root).returncode == 0
    push(root)
    assert run("git", "clone", "-q", str(root), str(tmp_path / "clone"), cwd=root).returncode == 0
    return tmp_path / "clone"


def push(root: Path) -> None:
    nodes = plan(root)
    with chdir(root):
        push_outputs(Repository(), nodes)


def reproduce(root: Path, name: str, *, force: bool = False) -> Outcome:
    with engine(root, pull=True, allow_missing=True) as (reproducer, nodes):
        return reproducer.run(nodes[name], force=force)


def reasons(root: Path, *, push: bool = False) -> dict[str, tuple[str, ...]]:
    nodes = plan(root, pull=True, push=push)
    return {node.name: node.reasons(allow_missing=True) for node in nodes}


def test_nothing_is_needed_where_nothing_changed(clone: Path) -> None:
    """In a fresh clone no stage has a reason to run, a folder above other outputs included."""
    assert reasons(clone) == reasons(clone, push=True) == {"one": (), "two": (), "sum": ()}
    assert reproduce(clone, "sum") is Outcome.CACHED
    assert not (clone / "parts/one").exists()


def test_inputs_are_fetched_file_by_file(clone: Path) -> None:
    """A stage that runs gets every output below its folder, and no other one."""
    assert reproduce(clone, "sum", force=True) is Outcome.RAN
    assert (clone / "parts/one").read_text() == (clone / "parts/two/input.txt").read_text()
    assert (clone / "sum").read_text() == "input\ninput\n"


def test_a_changed_part_is_seen(clone: Path) -> None:
    """Where one part of the folder is another one, the folder counts as changed."""
    (clone / "parts/one").write_text("other\n")
    assert reasons(clone)["sum"] == ("modified parts",)


def test_what_is_nowhere_is_made_by_its_producer(clone: Path, tmp_path: Path) -> None:
    """An object that the remote lost makes its stage run, if somebody needs it."""
    objects = [path for path in (tmp_path / "store/files").rglob("*") if path.is_file()]
    lost = next(path for path in objects if path.read_text() == "input\ninput\n")
    lost.unlink()
    assert reasons(clone)["sum"] == ()
    assert reasons(clone, push=True) == {
        "one": (), "two": (), "sum": ("sum is neither in the cache nor in the remote",),
    }  # fmt: skip


def test_what_was_never_made_is_not_missing(clone: Path) -> None:
    """A stage without an entry in dvc.lock runs, though its output is not here either."""
    (clone / "dvc.lock").unlink()
    assert all(reasons(clone).values())


def test_data_that_nobody_makes_is_named(clone: Path, tmp_path: Path) -> None:
    """Data added by `dvc add` and pushed nowhere is an error that names it."""
    (clone / "data.txt").write_text("data\n")
    run("dvc", "add", "data.txt", cwd=clone)
    with open(clone / "dvc.yaml", "a") as file:
        file.write("  use:\n    cmd: cp data.txt used\n    deps: [data.txt]\n    outs: [used]\n")
    (clone / "data.txt").unlink()
    shutil.rmtree(clone / ".dvc/cache")
    with pytest.raises(GraphError, match=r"data\.txt: is neither here.*no stage makes it"):
        plan(clone, pull=True)


def test_a_remote_that_does_not_answer_is_named(clone: Path, tmp_path: Path) -> None:
    """A remote whose every access is an error ends the plan in one line."""
    shutil.rmtree(tmp_path / "store")
    (tmp_path / "store").symlink_to("store")
    with pytest.raises(GraphError, match="remote 'store' does not answer") as error:
        plan(clone, pull=True, push=True)
    assert "\n" not in str(error.value)


def test_an_earlier_run_is_restored_elsewhere(clone: Path) -> None:
    """The run-cache entry of the stage alone is fetched, and restored."""
    (clone / "dvc.lock").unlink()
    assert reproduce(clone, "two") is Outcome.RESTORED
    assert len(list((clone / ".dvc/cache/runs").glob("*/*/*"))) == 1


def test_a_collected_file_of_a_folder_is_pushed_again(clone: Path, tmp_path: Path) -> None:
    """A remote that has a folder's list but lacks one of its files gets that file."""
    assert run("dvc", "pull", cwd=clone).returncode == 0
    objects = [path for path in (tmp_path / "store/files").rglob("*") if path.is_file()]
    for path in objects:
        if path.suffix != ".dir":
            path.unlink()
    push(clone)
    assert all(path.exists() for path in objects)


def test_fetching_reads_no_pipeline_anew(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files and folders come back without dvc.yaml being read for each, as DVC's own pull does."""
    nodes = plan(clone)
    outs = [out for node in nodes for out in (node.stage.outs if node.stage else ())]
    read: list[FileMixin] = []
    load = FileMixin._load

    def count(file: FileMixin, **how: Any) -> Any:
        read.append(file)
        return load(file, **how)

    monkeypatch.setattr(FileMixin, "_load", count)
    with chdir(clone):
        pull_data(outs[0].repo, outs)
        assert read == []
        assert dvc_status(clone) == CLEAN
        for file in Path(outs[0].repo.cache.local.path).rglob("*"):
            if file.is_file():
                file.unlink()
        (clone / "sum").write_text("edited\n")
        pull_data(outs[0].repo, outs)
    assert (clone / "sum").read_text() == "input\n" * 2
    assert (clone / "parts/two/input.txt").read_text() == "input\n"


def test_what_the_remote_lost_cannot_be_fetched(clone: Path, tmp_path: Path) -> None:
    """An output that is nowhere is an error, and changes nothing in the workspace."""
    outs = [out for node in plan(clone) for out in (node.stage.outs if node.stage else ())]
    shutil.rmtree(tmp_path / "store/files")
    with chdir(clone), pytest.raises(OSError, match="1 of 1 files are not in the remote"):
        pull_data(outs[0].repo, outs[:1])
    assert not (clone / "parts/one").exists()
