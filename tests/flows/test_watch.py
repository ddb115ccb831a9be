import subprocess
import sys
import threading
import time
from collections.abc import Iterator

import psutil
import pytest

from dvc_flow import watch
from dvc_flow.watch import watching
from tests.flows.services import wait_until
from tests.helpers import ROOT

ORPHAN = """
import sys, time
from dvc_flow.watch import end_with_worker
if sys.argv[1] == "worker":
    end_with_worker()
    end_with_worker()
print("watching", flush=True)
time.sleep(60)
"""
PARENT = """
import subprocess, sys
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
print(child.pid, flush=True)
child.wait()
"""


def is_gone(process: psutil.Process) -> bool:
    try:
        return process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


@pytest.mark.parametrize("parent", ["worker", "terminal"])
def test_a_flow_ends_with_its_worker_and_with_nothing_else(parent: str) -> None:
    """When the worker is killed, the flow ends itself; the end of a terminal does not matter."""
    worker = subprocess.Popen(
        [sys.executable, "-c", PARENT, ORPHAN, parent], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    assert worker.stdout.readline() == "watching\n"
    worker.kill()
    worker.wait()
    try:
        if parent == "worker":
            wait_until(lambda: is_gone(child), 5, "the flow's end")
        else:
            time.sleep(3 * watch.POLL_S)
            assert child.is_running()
    finally:
        if child.is_running():
            child.kill()
        worker.stdout.close()


STUBBORN = """
import signal, time
from dvc_flow import watch
watch.GRACE_S = 1.0
signal.signal(signal.SIGTERM, lambda *_: None)
watch.end_with_worker()
print("watching", flush=True)
while True:
    time.sleep(1)
"""


def test_a_flow_that_does_not_end_when_asked_is_killed() -> None:
    """A process that is stuck, and does not end by SIGTERM, is killed after a grace."""
    worker = subprocess.Popen(
        [sys.executable, "-c", PARENT, STUBBORN], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    assert worker.stdout.readline() == "watching\n"
    worker.kill()
    worker.wait()
    worker.stdout.close()
    wait_until(lambda: is_gone(child), 10, "the flow's end")


def test_an_orphan_ends_at_once() -> None:
    """A flow whose worker died before the flow was loaded finds itself with another parent."""
    late = f"import time; time.sleep(2)\n{ORPHAN}"
    worker = subprocess.Popen(
        [sys.executable, "-c", PARENT, late, "worker"], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert worker.stdout is not None
    child = psutil.Process(int(worker.stdout.readline()))
    worker.kill()
    worker.wait()
    wait_until(lambda: is_gone(child), 15, "the flow's end")
    worker.stdout.close()


WRITER = """
import os, sys
from rich.console import Console
from dvc_flow.watch import outlive_output
if sys.argv[1] == "outlives":
    outlive_output()
console = Console(file=sys.stdout)
sys.stdin.read()  # until nobody reads the output
console.print("lost")
console.print("lost too")
sys.stderr.write("went on")
sys.stderr.flush()
os._exit(0)
"""


@pytest.mark.parametrize("kind", ["outlives", "as it comes"])
def test_a_flow_outlives_the_reader_of_its_output(kind: str) -> None:
    """A line that nobody reads any more does not end the flow; without that, it would."""
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, kind], cwd=ROOT, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as flow:  # fmt: skip
        assert flow.stdout is not None
        assert flow.stdin is not None
        assert flow.stderr is not None
        flow.stdout.close()
        flow.stdin.close()
        assert ("went on" in flow.stderr.read()) == (kind == "outlives")


def test_a_cancelled_run_is_seen_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """What ends the stages is called once, however long the run stays cancelled."""
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    calls = []
    with watching(lambda: True, lambda: calls.append(1)):
        time.sleep(0.3)
    assert calls == [1]


def test_a_server_that_does_not_answer_cancels_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """An error counts as no, and the question is asked again."""
    monkeypatch.setattr(watch, "POLL_S", 0.01)
    answers: Iterator[bool | Exception] = iter([ConnectionError("away"), False, True])
    cancelled = threading.Event()

    def is_cancelled() -> bool:
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    with watching(is_cancelled, cancelled.set):
        assert cancelled.wait(5)
