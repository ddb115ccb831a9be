from pathlib import Path

import pytest
import tensorflow as tf

from pipeline import device
from pipeline.device import Device, find_device
from pipeline.errors import TrainingError


def test_auto_takes_bfloat16_where_the_device_has_it() -> None:
    """`auto` is bfloat16 where the device multiplies in it, else float32; others are obeyed."""
    fast, plain = Device("GPU", "a", True), Device("CPU", "b", False)
    assert fast.precision("auto") == "mixed_bfloat16"
    assert plain.precision("auto") == "float32"
    assert plain.precision("mixed_bfloat16") == "mixed_bfloat16"
    assert fast.precision("float32") == "float32"


@pytest.mark.parametrize(
    ("flags", "expected"), [("fma avx512_bf16", True), ("fma amx_bf16", True), ("fma avx512f", False)]
)  # fmt: skip
def test_the_cpus_flags_tell_whether_it_has_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    """A CPU has bfloat16 if its flags say so."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags}\n\n")
    monkeypatch.setattr(device, "CPU_INFO", info)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert find_device() == Device("CPU", "Some CPU", expected)
    assert str(find_device()) == "CPU (Some CPU)"


def test_another_system_falls_back_to_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where the flags cannot be read, bfloat16 is not assumed."""
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert not find_device().has_bfloat16


def test_a_gpu_goes_before_the_cpu_and_its_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU it is used, and its memory grows as needed."""
    growing = []
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: ["gpu 0", "gpu 1"])
    monkeypatch.setattr(
        tf.config.experimental, "set_memory_growth", lambda gpu, on: growing.append((gpu, on))
    )
    monkeypatch.setattr(
        tf.config.experimental,
        "get_device_details",
        lambda gpu: {"device_name": "H200", "compute_capability": (9, 0)},
    )
    assert find_device() == Device("GPU", "H200", True, count=2)
    assert growing == [("gpu 0", True), ("gpu 1", True)]


def test_one_processor_needs_no_strategy() -> None:
    """One processor trains as it is; what several cannot share equally is refused."""
    assert Device("CPU", "a", False).strategy(7).num_replicas_in_sync == 1
    pair = Device("GPU", "H200", True, count=2)
    assert str(pair) == "2 × GPU (H200)"
    with pytest.raises(TrainingError, match="batch_size 7 cannot be shared equally by 2 GPUs"):
        pair.strategy(7)
