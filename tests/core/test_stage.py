import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers import ROOT, assert_one_clear_line, no_parts, run_python, run_stage

# A stage that reads a parameter, then waits while a test changes something.
STAGE = """
import time
from pathlib import Path
from pipeline.datasets import splits
from pipeline.core.files import whole_file
from pipeline.core.params import Params
from pipeline.core.stage import require_unchanged, run_stage

def main():
    params = Params()
    params.get("train.precision", str)
    with whole_file(Path("half")) as file:
        file.write(b"half")
        Path("begun").touch()
        while not Path("go").exists():
            time.sleep(0.05)
    require_unchanged(params)
    print("done")

run_stage(main)
"""


def test_an_error_of_a_stage_is_one_line_and_code_one(project: Path) -> None:
    """A pipeline error ends a stage with one line and exit code 1."""
    assert_one_clear_line(run_stage("download", "tiyn", cwd=project), "did you mean 'tiny'")


def test_a_missing_argument_shows_the_usage() -> None:
    """A stage called without its arguments prints its usage and exits with code 2."""
    result = run_stage("download")
    assert result.returncode == 2
    assert "usage: python -m pipeline.download" in result.stderr
    assert "--dataset NAME" in result.stderr


def test_the_garbage_collector_leaves_alone_what_a_stage_imported() -> None:
    """It visits the imports' objects neither during a stage nor at its end."""
    code = "import gc\nfrom pipeline.core.stage import run_stage\n" + (
        "def main():\n    print(gc.get_freeze_count() > len(gc.get_objects()))\nrun_stage(main)"
    )
    assert run_python(code) == "True\n"


@pytest.fixture
def own_code(project: Path) -> Path:
    """A project with its own copy of the code, which a test may edit."""
    ignore = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "pipeline", project / "pipeline", ignore=ignore)
    return project


def begin(project: Path, code: Path | None = None) -> "subprocess.Popen[str]":
    """Start `STAGE` with the code of the project or another, and return once it is running."""
    process = subprocess.Popen(
        [sys.executable, "-c", STAGE], cwd=project, env={**os.environ, "PYTHONPATH": str(code or project)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        # A shell that starts the tests in the background has them ignore it.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not (project / "begun").exists():
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return process


def finish(process: "subprocess.Popen[str]", project: Path) -> "subprocess.CompletedProcess[str]":
    (project / "go").touch()
    out, err = process.communicate(timeout=60)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


def test_unrelated_edits_do_not_matter(own_code: Path) -> None:
    """Other parameters, comments and code that is not imported may be edited during a stage."""
    process = begin(own_code)
    replace(own_code / "params.yaml", "mistakes_shown: 10", "mistakes_shown: 9  # fewer")
    replace(own_code / "pipeline/report.py", '"""', '"""More: ')
    done = finish(process, own_code)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr


@pytest.mark.parametrize(
    ("file", "old", "new", "named"),
    [
        ("params.yaml", "precision: auto", "precision: float32", "train.precision"),
        ("params.yaml", "precision: auto", "precisoin: auto", "train.precision"),
        ("params.yaml", "train:", "train: [", "params.yaml"),
        ("pipeline/datasets/splits.py", '"""', '"""More: ', "splits.py"),
    ],
)
def test_inputs_that_change_under_a_stage_fail_it(
    own_code: Path, file: str, old: str, new: str, named: str
) -> None:
    """A stage whose inputs change while it runs fails, so DVC never records results they did not make."""
    process = begin(own_code)
    replace(own_code / file, old, new)
    assert_one_clear_line(
        finish(process, own_code), f"{named} changed while the stage was running", "rerun it"
    )


@pytest.mark.parametrize(
    ("number", "code", "line"),
    [(signal.SIGTERM, 143, "error: terminated"), (signal.SIGINT, 130, "error: interrupted")],
)
def test_a_stage_that_is_told_to_end_leaves_nothing_half_written(
    project: Path, number: signal.Signals, code: int, line: str
) -> None:
    """SIGTERM and SIGINT end a stage with one line, their own exit code and no half-written file."""
    process = begin(project, ROOT)
    process.send_signal(number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert err.splitlines() == [line]
    assert no_parts(project)
    assert not (project / "half").exists()
