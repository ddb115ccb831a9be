from pathlib import Path

import pytest

from benchmarks import machine


def measurement(device: str, figures: int, python: str = "3.11") -> dict[str, object]:
    hardware = {
        "device": device, "cpu_family": 25, "bfloat16": False, "cores": 2, "python": python,
    }  # fmt: skip
    return {"machine": hardware, "figures": figures}


def test_another_machine_keeps_its_figures() -> None:
    """A new measurement goes first, and takes the place of its own machine's only."""
    before = [measurement("CPU A", 1), measurement("CPU B", 2)]
    after = machine.replace(before, measurement("CPU B", 3, python="3.12"))
    assert [(each["machine"]["device"], each["figures"]) for each in after] == [
        ("CPU B", 3),
        ("CPU A", 1),
    ]


def test_the_middle_of_repeats_and_their_extremes_are_told() -> None:
    """The spread has the median, the lowest and the highest, with four significant digits."""
    assert machine.spread([3.0, 1.0, 2.00006]) == (2.0, 1.0, 3.0, 3)


def test_the_cpus_family_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The family tells designs apart that have one name; other systems have none."""
    info = tmp_path / "cpuinfo"
    info.write_text("model name\t: AMD EPYC\ncpu family\t: 26\nmodel\t\t: 2\n")
    monkeypatch.setattr(machine, "CPU_INFO", info)
    assert machine.cpu_family() == 26
    info.unlink()
    assert machine.cpu_family() is None
