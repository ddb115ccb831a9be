from pathlib import Path

import pytest
import tensorflow as tf

from pipeline.core.errors import TrainingError
from pipeline.network import device
from pipeline.network.device import Device, find_device


def test_auto_is_bfloat16_if_the_device_supports_it() -> None:
    """`auto` is bfloat16 if the device supports it, else float32; other choices are kept."""
    fast, plain = Device("GPU", "a", True), Device("CPU", "b", False)
    assert fast.precision("auto") == "mixed_bfloat16"
    assert plain.precision("auto") == "float32"
    assert plain.precision("mixed_bfloat16") == "mixed_bfloat16"
    assert fast.precision("float32") == "float32"


@pytest.mark.parametrize(
    ("flags", "expected"), [("fma avx512_bf16", True), ("fma amx_bf16", True), ("fma avx512f", False)]
)  # fmt: skip
def test_the_cpus_flags_decide_on_bfloat16(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: str, expected: bool
) -> None:
    """A CPU supports bfloat16 if its flags say so; those of vectors are kept."""
    info = tmp_path / "cpuinfo"
    info.write_text(f"processor\t: 0\nmodel name\t: Some CPU\nflags\t\t: fpu {flags}\n\n")
    monkeypatch.setattr(device, "CPU_INFO", info)
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    found = find_device()
    assert (found.kind, found.name, found.has_bfloat16) == ("CPU", "Some CPU", expected)
    assert found.instructions == tuple(sorted(flags.split()))
    assert str(found) == "CPU (Some CPU)"


def test_another_system_falls_back_to_float32(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """If the CPU's flags cannot be read, bfloat16 is not assumed."""
    monkeypatch.setattr(device, "CPU_INFO", tmp_path / "missing")
    monkeypatch.setattr(tf.config, "list_physical_devices", lambda kind: [])
    assert not find_device().has_bfloat16


def test_a_gpu_is_preferred_and_its_memory_grows(monkeypatch: pytest.MonkeyPatch) -> None:
    """If there is a GPU it is used, and its memory grows as needed."""
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


def test_a_batch_must_divide_equally_among_processors() -> None:
    """One processor takes any batch; one that several cannot share equally is rejected."""
    assert Device("CPU", "a", False).strategy(7).num_replicas_in_sync == 1
    pair = Device("GPU", "H200", True, count=2)
    assert str(pair) == "2 × GPU (H200)"
    with pytest.raises(TrainingError, match="batch_size 7 cannot be divided equally among 2 GPUs"):
        pair.strategy(7)
