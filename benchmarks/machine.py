"""The machine that figures come from, and the spread of repeated figures."""

import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import psutil

from pipeline.network.device import CPU_INFO, find_device

# What identifies a machine; library versions change over time.
HARDWARE = ("device", "cpu_family", "bfloat16", "cores")


def spread(values: Sequence[float]) -> dict[str, float]:
    """Return the median and the range to four significant digits, and the number of values."""
    figures = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return {name: float(f"{each:.4g}") for name, each in figures.items()} | {"repeats": len(values)}


def cpu_family() -> int | None:
    """Return the vendor's number for the CPU's design, which a cloud's model name may hide."""
    try:
        family = re.search(r"^cpu family\s*: (\d+)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(family[1]) if family else None


def describe() -> dict[str, Any]:
    """Return the hardware, the operating system and the library versions."""
    device = find_device()
    return {
        "device": str(device),
        "cpu_family": cpu_family(),
        "bfloat16": device.has_bfloat16,
        "cores": os.cpu_count(),
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("tensorflow", "keras", "numpy")},
    }


def replace(
    measurements: Sequence[Mapping[str, Any]], new: Mapping[str, Any]
) -> list[Mapping[str, Any]]:
    """Return the measurements with `new` first, in place of an older one from the same machine.

    Each has under ``"machine"`` what `describe` returned there.
    """

    def hardware(measurement: Mapping[str, Any]) -> list[Any]:
        return [measurement["machine"][key] for key in HARDWARE]

    return [new, *(old for old in measurements if hardware(old) != hardware(new))]
