import platform
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from scripts import setup_venv
from scripts.readme import results_table
from scripts.unchanged import hashes_of
from tests.helpers import ROOT


def test_the_readme_shows_the_committed_results(monkeypatch: pytest.MonkeyPatch) -> None:
    """The README's table is the one that `make readme` writes from the results in git."""
    monkeypatch.chdir(ROOT)
    assert results_table() in (ROOT / "README.md").read_text()


def test_only_outputs_of_dvc_are_compared() -> None:
    """`make unchanged` compares data, models and predictions, and no metrics."""
    lock = (
        "stages: {a: {outs: [{path: models/a, md5: '1'}, {path: results/a.json, md5: '2'}]}, "
        "b: {outs: [{path: data/b, md5: '3'}]}}"
    )
    assert hashes_of(lock) == {"models/a": "1", "data/b": "3"}
    assert hashes_of("") == {}


@pytest.mark.parametrize(
    ("module", "name", "value", "reason"),
    [
        (sys, "version_info", (3, 10, 1), r"Python 3\.10 is not supported; install Python 3\.11"),
        (sys, "version_info", (3, 14, 0), r"Python 3\.14 is not supported"),
        (platform, "machine", lambda: "riscv64", "no wheels for .* riscv64"),
        (shutil, "which", lambda _: None, "git was not found"),
        (sys, "modules", sys.modules | {"venv": None}, "no module venv; .*apt install"),
    ],
)
def test_what_cannot_work_is_reported_before_anything_is_installed(
    module: object,
    name: str,
    value: object,
    reason: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Another Python or platform, no git or no venv module is one line, and no folder is made."""
    with monkeypatch.context() as patch:
        if name == "modules":
            patch.setitem(sys.modules, "venv", None)
        else:
            patch.setattr(module, name, value)
        code = setup_venv.install(tmp_path / "venv", tmp_path / "lock")
    message = capsys.readouterr().err
    assert code == 1
    assert re.search(reason, message)
    assert message.count("\n") == 1
    assert not (tmp_path / "venv").exists()


@pytest.mark.slow
def test_a_broken_environment_is_rebuilt(tmp_path: Path) -> None:
    """A folder without pip, or with a dead Python, becomes an environment that works."""
    folder, lock = tmp_path / "venv", tmp_path / "lock"
    lock.write_text("")
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python").symlink_to("/nowhere/python")
    assert setup_venv.install(folder, lock) == 0
    pip = [str(folder / "bin/python"), "-m", "pip", "--version"]
    assert subprocess.run(pip, capture_output=True, check=False).returncode == 0
    begun = (folder / "pyvenv.cfg").stat().st_mtime_ns
    assert setup_venv.install(folder, lock) == 0
    assert (folder / "pyvenv.cfg").stat().st_mtime_ns == begun
