from pathlib import Path

from tests.conftest import assert_one_clear_line, edit_params, run_stage


def test_names_can_be_checked_before_a_run(project: Path) -> None:
    """`python -m pipeline.check` refuses a run of an unknown variant in one line."""
    assert run_stage("check", cwd=project).returncode == 0
    edit_params(project / "params.yaml", lambda params: params["run"]["variants"].append("lenet6"))
    assert_one_clear_line(run_stage("check", cwd=project), "did you mean 'lenet5'")
