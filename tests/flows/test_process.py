import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dvc_flow.process import KEPT_LINES, LONGEST_LINE, Lines, run_process
from dvc_flow.stop import Stop
from tests.flows.services import wait_until


def execute(command: str, folder: Path, **how: object) -> tuple[int, list[str]]:
    shown: list[str] = []
    status = run_process(
        ["sh", "-c", command], name="stage", folder=str(folder), environment=os.environ,
        lines=Lines(shown.extend), **{"stop": Stop(), **how},  # type: ignore[arg-type]
    )  # fmt: skip
    return status, shown


def test_the_exit_status_is_the_shells(tmp_path: Path) -> None:
    """A status is passed on; a signal is 128 and its number."""
    assert execute("exit 3", tmp_path)[0] == 3
    assert execute("kill -9 $$", tmp_path)[0] == 128 + signal.SIGKILL


def test_output_comes_line_by_line(tmp_path: Path) -> None:
    """Both streams, the last line without its end, and the last state of a bar that redraws."""
    _, shown = execute("echo one; echo two >&2; printf '1%%\\r50%%\\r100%%\\nlast'", tmp_path)
    assert shown == ["one", "two", "100%", "last"]


def test_a_long_line_is_cut() -> None:
    """A line of a megabyte is held and shown in bounded length."""
    shown: list[str] = []
    lines = Lines(shown.extend)
    for _ in range(100):
        lines.feed(b"x" * 10_000)
        assert len(lines.rest) <= LONGEST_LINE
    lines.feed(b"\nnext\n")
    assert [len(line) for line in shown] == [LONGEST_LINE, 4]


def test_of_many_lines_both_ends_are_shown() -> None:
    """Of thousands of lines in one reading those in the middle are counted."""
    shown: list[str] = []
    lines = Lines(shown.extend)
    lines.feed(b"".join(b"%d\n" % n for n in range(5000)) + b"rest")
    assert shown[0] == "0"
    assert "… 4800 lines left out" in shown
    assert shown[-1] == "4999"
    assert len(shown) == 201
    assert list(lines.last) == [str(n) for n in range(5000 - KEPT_LINES, 5000)]
    lines.end()
    assert shown[-1] == "rest"


def test_what_a_command_leaves_running_ends_with_it(tmp_path: Path) -> None:
    """Its background processes are killed, unless they may outlive it."""
    execute("sleep 60 & echo $! > pid", tmp_path)
    left = int((tmp_path / "pid").read_text())
    wait_until(lambda: not psutil.pid_exists(left) or is_zombie(left), 5, "the end")
    begin = time.monotonic()
    execute("sleep 60 & echo $! > pid", tmp_path, background=True)
    left = int((tmp_path / "pid").read_text())
    assert time.monotonic() - begin < 10
    assert psutil.pid_exists(left)
    psutil.Process(left).kill()


def is_zombie(pid: int) -> bool:
    return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE


def test_an_interrupted_command_takes_its_time(tmp_path: Path) -> None:
    """SIGINT reaches the command, which may clean up for as long as it likes."""
    code = (
        "import os, time\ntry:\n  os.kill(os.getppid(), 0)\n  os.open('on', os.O_CREAT)\n  time.sleep(60)\n"
        "finally:\n  time.sleep(1)\n  open('cleaned', 'w').close()\n"
    )
    (tmp_path / "code.py").write_text(code)
    stop = Stop()

    def interrupt(lines: list[str]) -> None:
        wait_until((tmp_path / "on").exists, 10, "its begin", every=0.01)
        stop.set(signal.SIGINT)

    status = run_process(
        ["sh", "-c", f"echo go; exec {sys.executable} code.py"], name="stage", folder=str(tmp_path),
        environment=os.environ, lines=Lines(interrupt), stop=stop,
    )  # fmt: skip
    assert status in (130, 1)
    assert (tmp_path / "cleaned").exists()


STAGE = """
import os, sys
from dvc_flow.process import Lines, run_process
from dvc_flow.stop import Stop
run_process(
    ["sh", "-c", "sleep 60 & sleep 60"], name="stage", folder=os.getcwd(), environment=os.environ,
    lines=Lines(print), stop=Stop(),
)
"""


@pytest.mark.parametrize("moment", [0.0, 0.05, 0.2, 0.5])
def test_a_command_ends_with_the_run_however_that_dies(tmp_path: Path, moment: float) -> None:
    """SIGKILL of the run leaves no process of the stage, at whatever moment it comes."""
    run = subprocess.Popen([sys.executable, "-c", STAGE], cwd=tmp_path)
    wait_until(lambda: len(psutil.Process(run.pid).children()) >= 1, 20, "its begin", every=0.01)
    time.sleep(moment)
    run.kill()
    run.wait()

    def left() -> list[int]:
        found = []
        for process in psutil.process_iter(["cwd"]):
            if process.info["cwd"] == str(tmp_path):
                found.append(process.pid)
        return found

    wait_until(lambda: not left(), 8, "the end of all", every=0.1)
