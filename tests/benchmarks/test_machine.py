from pathlib import Path

import pytest

from benchmarks import machine


def measurement(device: str, figures: int, python: str = "3.11") -> dict[str, object]:
    hardware = {
        "device": device, "cpu_family": 25, "bfloat16": False, "cores": 2, "python": python,
    }  # fmt: skip
    return {"machine": hardware, "figures": figures}


def test_another_machine_keeps_its_figures() -> None:
    """A new measurement goes first, and replaces that of the same machine alone."""
    before = [measurement("CPU A", 1), measurement("CPU B", 2)]
    after = machine.replace(before, measurement("CPU B", 3, python="3.12"))
    assert [(each["machine"]["device"], each["figures"]) for each in after] == [
        ("CPU B", 3),
        ("CPU A", 1),
    ]


def test_a_spread_is_the_median_and_the_range() -> None:
    """Numbers have four significant digits, and their count comes with them."""
    expected = {"median": 2.0, "low": 1.0, "high": 3.0, "repeats": 3}
    assert machine.spread([3.0, 1.0, 2.00006]) == expected


def test_the_cpu_family_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family distinguishes CPUs of the same name; systems other than Linux have none."""
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert machine.cpu_family() == 26
    info.unlink()
    assert machine.cpu_family() is None
