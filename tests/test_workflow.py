"""The workflow for GitHub, read, and its comparison run as GitHub runs it."""

import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.conftest import ROOT, environment
from tests.test_compare import commit, history, repository, run

__all__ = ["history", "repository"]  # fixtures

WORKFLOW: dict[str, Any] = YAML(typ="safe").load(
    (ROOT / ".github/workflows/checks.yaml").read_text()
)


def step_that_compares() -> dict[str, Any]:
    steps: list[dict[str, Any]] = WORKFLOW["jobs"]["comparison"]["steps"]
    return next(step for step in steps if "pipeline.compare" in step.get("run", ""))


def test_the_workflow_runs_what_the_makefile_has() -> None:
    """Each make target that a step calls exists, and no secret is used."""
    text = (ROOT / ".github/workflows/checks.yaml").read_text()
    makefile = (ROOT / "Makefile").read_text()
    called = [
        step["run"].split()[1]
        for job in WORKFLOW["jobs"].values()
        for step in job["steps"]
        if step.get("run", "").startswith("make ")
    ]
    assert called == ["check", "test", "setup"]
    assert all(f"\n{target}: " in makefile for target in called)
    assert "secrets." not in text
    assert WORKFLOW["permissions"] == {"contents": "read"}


def run_step(root: Path, base: str, summary: Path) -> subprocess.CompletedProcess[str]:
    """Run the step in a repository, as GitHub's shell does."""
    (root / ".venv/bin").mkdir(parents=True)
    (root / ".venv/bin/activate").touch()
    return subprocess.run(
        ["bash", "-e", "-o", "pipefail", "-c", step_that_compares()["run"]],
        cwd=root,
        env=environment(BASE=base, TOLERANCE="0.1", GITHUB_STEP_SUMMARY=str(summary)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("head", "code", "verdict"),
    [("regression", 1, "| worse |"), ("seed", 0, "| no evidence of a difference |")],
)
def test_the_comparison_is_posted_and_fails_if_worse(
    repository: Path, tmp_path: Path, head: str, code: int, verdict: str
) -> None:
    """The step writes the table into the summary, and fails only where something became worse."""
    run(repository, "git", "checkout", "-q", head)
    done = run_step(repository, "base", tmp_path / "summary.md")
    assert done.returncode == code, done.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("## Is it better?\n")
    assert verdict in summary
    assert ("> error: worse than base" in summary) == bool(code)


def test_a_base_without_results_is_told_in_the_summary(repository: Path, tmp_path: Path) -> None:
    """Where the base branch has nothing to compare with, the summary says so."""
    run(repository, "git", "rm", "-rq", "metrics")
    run(repository, "git", "commit", "-qm", "bare")
    run(repository, "git", "tag", "bare")
    (repository / "metrics/digits").mkdir(parents=True)
    commit(repository, "again", seed=0, wrong=20)
    assert run_step(repository, "bare", tmp_path / "summary.md").returncode == 1
    assert "> error: bare: has no metrics" in (tmp_path / "summary.md").read_text()
