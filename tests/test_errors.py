from pathlib import Path

from tests.conftest import assert_one_clear_line, run_stage


def test_an_error_of_a_stage_is_one_line_and_code_one(project: Path) -> None:
    """An error of the project's own ends a stage with one line and code 1."""
    assert_one_clear_line(run_stage("download", "tiyn", cwd=project), "did you mean 'tiny'")


def test_a_missing_argument_shows_the_usage() -> None:
    """A stage without its arguments shows how it is called, with code 2."""
    result = run_stage("download")
    assert result.returncode == 2
    assert "usage: python -m pipeline.download" in result.stderr
