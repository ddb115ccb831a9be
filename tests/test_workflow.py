"""The workflow for GitHub: what it calls exists, and its comparison works as GitHub runs it."""

import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.helpers import ROOT, environment, run
from tests.history import commit, save

WORKFLOW: dict[str, Any] = YAML(typ="safe").load(
    (ROOT / ".github/workflows/checks.yaml").read_text()
)


def step_that_compares() -> dict[str, Any]:
    steps: list[dict[str, Any]] = WORKFLOW["jobs"]["comparison"]["steps"]
    return next(step for step in steps if "pipeline.compare" in step.get("run", ""))


def test_the_workflow_runs_what_the_makefile_has() -> None:
    """Each make target that a step calls exists, and the workflow uses no secret."""
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
    """Run the step in a repository as GitHub's shell does."""
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
    history: Path, tmp_path: Path, head: str, code: int, verdict: str
) -> None:
    """The step writes the table into the summary, and fails only if a variant became worse."""
    run("git", "checkout", "-q", head, cwd=history)
    done = run_step(history, "base", tmp_path / "summary.md")
    assert done.returncode == code, done.stderr
    summary = (tmp_path / "summary.md").read_text()
    assert summary.startswith("## Is it better?\n")
    assert verdict in summary
    assert ("> error: worse than base" in summary) == bool(code)


def test_a_base_without_results_is_reported_in_the_summary(history: Path, tmp_path: Path) -> None:
    """If the base branch has no results to compare with, the summary says so."""
    shutil.rmtree(history / "results")
    save(history, "bare")
    commit(history, "again", images=500, seed=0, wrong=20)
    assert run_step(history, "bare", tmp_path / "summary.md").returncode == 1
    assert "> error: bare: has no metrics" in (tmp_path / "summary.md").read_text()
