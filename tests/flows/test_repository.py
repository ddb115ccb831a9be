from collections.abc import Callable
from pathlib import Path

import pytest

from dvc_flow.errors import GraphError, PolicyError
from tests.flows.conftest import Stages, fan_out, plan, run, stage, write_stages
from tests.helpers import ROOT

MakeRepository = Callable[[Stages], Path]


def test_the_graph_is_dvcs_own(make_repository: MakeRepository) -> None:
    """Stages come behind those that they depend on, by DVC's own edges."""
    nodes = plan(make_repository(fan_out(3)))
    assert [node.name for node in nodes] == ["source", "leaf0", "leaf1", "leaf2", "join"]
    upstream = {node.name: node.upstream for node in nodes}
    assert upstream["leaf1"] == ("source",)
    assert upstream["join"] == ("leaf0", "leaf1", "leaf2")


def test_a_target_takes_what_it_needs(make_repository: MakeRepository) -> None:
    """A target brings the stages that it needs, and no others."""
    root = make_repository(fan_out(3))
    assert [node.name for node in plan(root, "leaf1")] == ["source", "leaf1"]


def test_changes_say_why(make_repository: MakeRepository) -> None:
    """A stage that is up to date has no changes; another one says what changed."""
    root = make_repository(fan_out(2))
    assert run("dvc", "repro", cwd=root).returncode == 0
    assert all(node.changes == () for node in plan(root))
    (root / "input.txt").write_text("other\n")
    changes = {node.name: node.changes for node in plan(root)}
    assert changes == {"source": ("modified input.txt",), "leaf0": (), "leaf1": (), "join": ()}


def test_matrix_entries_and_policies_are_read(make_repository: MakeRepository) -> None:
    """Each entry of a matrix is a stage, with the policy that `meta.dvc-flow` declares; the rest of `meta` is free."""
    root = make_repository(
        {
            "train": {
                "matrix": {"variant": ["a", "b"]},
                "cmd": "echo ${item.variant} > ${item.variant}.txt",
                "outs": ["${item.variant}.txt"],
                "meta": {"owner": "me", "dvc-flow": {"retries": 2, "gpus": 1}},
            }
        }
    )
    nodes = plan(root)
    assert [node.name for node in nodes] == ["train@a", "train@b"]
    assert {(node.policy.retries, node.policy.gpus) for node in nodes} == {(2, 1)}


def test_the_projects_own_graph_is_read() -> None:
    """The project's own dvc.yaml is read, with valid policies; what can go on where it stopped retries."""
    nodes = plan(ROOT)
    retried = {node.name.partition("@")[0] for node in nodes if node.policy.retries}
    assert retried == {"download", "train"}
    trainings = [node for node in nodes if node.name.startswith("train@")]
    assert trainings
    assert all(node.policy.gpus == 1 for node in trainings)


def test_a_target_without_stages_runs_nothing(make_repository: MakeRepository) -> None:
    """A dvc.yaml whose matrix is empty has nothing to run, and does not stand for all."""
    root = make_repository(fan_out(1))
    (root / "later").mkdir()
    later = "stages: {each: {matrix: {name: []}, cmd: 'true'}}\n"
    (root / "later/dvc.yaml").write_text(later)
    assert plan(root, "later/dvc.yaml") == []
    assert len(plan(root)) == len(fan_out(1))


def test_what_is_broken_is_one_clear_line(make_repository: MakeRepository) -> None:
    """An unknown target, a cycle, a broken dvc.yaml or a wrong policy is told in one line."""
    root = make_repository(fan_out(1))
    with pytest.raises(GraphError, match="Stage 'nosuch' not found"):
        plan(root, "nosuch")
    write_stages(root, fan_out(1) | {"leaf0": stage("true", meta={"dvc-flow": {"retrys": 1}})})
    with pytest.raises(PolicyError, match="did you mean 'retries'"):
        plan(root)
    write_stages(root, {"a": stage("x", ("b",), "a"), "b": stage("x", ("a",), "b")})
    with pytest.raises(GraphError, match="both a dependency and an output"):
        plan(root)
    (root / "dvc.yaml").write_text("stages: [")
    with pytest.raises(GraphError, match="YAML file structure is corrupted") as error:
        plan(root)
    assert "\n" not in str(error.value)
    with pytest.raises(GraphError, match="not"):
        plan(root.parent)
