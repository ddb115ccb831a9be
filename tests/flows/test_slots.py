import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dvc_flow import slots
from dvc_flow.errors import StageStopped, WorkspaceBusy
from dvc_flow.slots import Resources, find_gpus, hold_workspace, try_lock
from dvc_flow.stop import Stop
from tests.helpers import ROOT


@pytest.fixture(autouse=True)
def own_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slots, "GPU_LOCKS", tmp_path / "gpus")


@pytest.fixture
def told() -> Stop:
    """An event that was set: whoever has to wait gives up."""
    event = Stop()
    event.set()
    return event


def test_visible_devices_are_the_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """CUDA_VISIBLE_DEVICES says which GPUs may be used; empty means none."""
    monkeypatch.setattr(slots, "CALLERS", {"CUDA_VISIBLE_DEVICES": "0,3"})
    assert find_gpus() == ("0", "3")
    monkeypatch.setattr(slots, "CALLERS", {"CUDA_VISIBLE_DEVICES": ""})
    assert find_gpus() == ()


def test_each_stage_has_a_gpu_of_its_own(told: Stop) -> None:
    """Two stages get two GPUs; a third has to wait until one is free."""
    resources = Resources(gpus=("0", "1"), memory_gb=1)
    with (
        resources.hold(1, 0, told) as (first, _),
        resources.hold(1, 0, told) as (second, _),
    ):
        assert {first["CUDA_VISIBLE_DEVICES"], second["CUDA_VISIBLE_DEVICES"]} == {"0", "1"}
        with (
            pytest.raises(StageStopped, match="waited for a GPU"),
            resources.hold(1, 0, told),
        ):
            pass
    with resources.hold(2, 0, told) as (both, held):
        assert both["CUDA_VISIBLE_DEVICES"] == "0,1"
        assert len(held) == 2


def test_a_stage_that_asks_for_none_is_left_alone(told: Stop) -> None:
    """The variable is set for a stage that asks for GPUs, and only where there are some."""
    with Resources(gpus=("0",), memory_gb=1).hold(0, 0, told) as (environment, _):
        assert environment == {}
    with Resources(gpus=(), memory_gb=1).hold(1, 0, told) as (environment, held):
        assert (environment, held) == ({}, [])


def test_two_that_need_all_gpus_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither of two stages that need both GPUs waits for the one that the other holds."""

    def slowly(path: Path) -> int | None:
        try:
            return try_lock(path)
        finally:
            time.sleep(0.01)  # enough for the other one to take a GPU meanwhile

    monkeypatch.setattr(slots, "try_lock", slowly)
    monkeypatch.setattr(slots, "POLL_S", 0.02)
    resources = Resources(gpus=("0", "1"), memory_gb=1)
    turns: list[str] = []

    def take() -> None:
        for _ in range(5):
            with resources.hold(2, 0, Stop()) as (variables, _):
                turns.append(variables["CUDA_VISIBLE_DEVICES"])

    threads = [threading.Thread(target=take, daemon=True) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(turns) == ["0,1"] * 10


def test_memory_is_not_oversubscribed(told: Stop) -> None:
    """Stages that ask for more memory than there is wait for each other."""
    resources = Resources(gpus=(), memory_gb=4)
    with resources.hold(0, 3, told):
        with pytest.raises(StageStopped, match="waited for memory"), resources.hold(0, 2, told):
            pass
        with resources.hold(0, 1, told):
            pass
    with resources.hold(0, 100, told):  # alone
        assert resources.free_gb == 0
    assert resources.free_gb == 4


HOLD = """
import sys, threading, time
from pathlib import Path
from dvc_flow import slots
from dvc_flow.stop import Stop
slots.GPU_LOCKS = Path(sys.argv[1]) / "gpus"
with (
    slots.hold_workspace(Path(sys.argv[1])),
    slots.Resources(gpus=("0",), memory_gb=1).hold(1, 0, Stop()),
):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_slot_dies_with_its_holder(tmp_path: Path, told: Stop) -> None:
    """A killed holder leaves neither its GPU nor its workspace behind."""
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    resources = Resources(gpus=("0",), memory_gb=1)
    with pytest.raises(StageStopped), resources.hold(1, 0, told):
        pass
    with (
        pytest.raises(WorkspaceBusy, match=f"another flow runs here .process {holder.pid}"),
        hold_workspace(tmp_path),
    ):
        pass
    holder.kill()
    holder.wait()
    holder.stdout.close()
    begin = time.monotonic()
    with resources.hold(1, 0, told), hold_workspace(tmp_path):
        assert time.monotonic() - begin < 1
