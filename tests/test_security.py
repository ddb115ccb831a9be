"""What SECURITY.md claims, checked in the code and with real programs."""

import ast
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from dvc_flow.errors import ParamsError
from dvc_flow.params import set_params
from tests.helpers import ROOT, environment, make_repository

FILES = sorted(path for folder in ("pipeline", "flows") for path in (ROOT / folder).rglob("*.py"))
HOSTILE = ("a; touch pwned", "$(touch pwned)", "../../outside", "a b", "--help", "a'b")


def calls(file: Path) -> Iterator[ast.Call]:
    return (node for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Call))


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(ROOT)))
def test_no_code_runs_what_it_reads(file: Path) -> None:
    """No module uses pickle, eval, a shell or unsafe YAML."""
    words = {
        node.id for node in ast.walk(ast.parse(file.read_text())) if isinstance(node, ast.Name)
    }
    assert not words & {"eval", "exec", "compile", "pickle", "marshal", "shelve", "joblib", "dill"}
    for call in calls(file):
        keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
        assert keywords.get("shell", "False") == "False"
        assert keywords.get("allow_pickle", "False") == "False"
        assert keywords.get("typ", "'safe'") == "'safe'"
        assert ast.unparse(call.func) not in ("os.system", "keras.models.load_model")
        if ast.unparse(call.func) == "np.load":
            assert "allow_pickle" in keywords


def test_names_reach_commands_only_when_quoted() -> None:
    """Each command in dvc.yaml gets its names from `${item}`, which DVC quotes for the shell."""
    stages = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text())["stages"]
    for name, stage in stages.items():
        assert stage["cmd"] == f"python -m pipeline.{name} ${{item}}"


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_name_runs_no_command(tmp_path: Path, name: str) -> None:
    """`dvc repro` with a hostile name runs nothing but the stage, which rejects it."""

    def change(params: Any) -> None:
        params["datasets"][name] = params["datasets"]["digits"]
        params["run"]["datasets"] = [name]

    root = make_repository(tmp_path / "project", change)
    for command in (["dvc", "repro"], ["python", "-m", "pipeline.check"]):
        done = subprocess.run(
            command, cwd=root, env=environment(PYTHONPATH=str(root)), capture_output=True,
            text=True, timeout=120, check=False,
        )  # fmt: skip
        assert done.returncode != 0
    assert "a name has lower-case letters, digits and underscores" in done.stderr
    assert not list(tmp_path.rglob("pwned")) + list(tmp_path.rglob("outside"))


@pytest.mark.parametrize("name", HOSTILE)
def test_a_deployments_parameters_cannot_set_a_hostile_name(tmp_path: Path, name: str) -> None:
    """Parameters of a flow are checked before DVC sees them, and hostile ones are not written."""
    for file in ("params.yaml", "pyproject.toml"):
        shutil.copy(ROOT / file, tmp_path)
    shutil.copytree(ROOT / "pipeline", tmp_path / "pipeline")
    before = {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()}
    table = f'datasets={{"{name}": {{}}}}'
    with pytest.raises(ParamsError, match="a name has lower-case letters"):
        set_params(tmp_path, [table], "python -m pipeline.check", environment())
    assert {path: path.read_bytes() for path in tmp_path.iterdir() if path.is_file()} == before
