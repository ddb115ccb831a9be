"""The machine that figures are from, and how repeated figures are told."""

import importlib.metadata
import os
import platform
import re
import statistics
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import psutil

from pipeline.device import CPU_INFO, find_device

# What tells one machine from another; its libraries change with time.
HARDWARE = ("device", "cpu_family", "bfloat16", "cores")


class Spread(NamedTuple):
    """Repeated measurements: the middle one, the extremes, and how many there are."""

    median: float
    low: float
    high: float
    repeats: int


def spread(values: Sequence[float]) -> Spread:
    """Return the spread of values, with four significant digits."""
    figures = (statistics.median(values), min(values), max(values))
    median, low, high = (float(f"{figure:.4g}") for figure in figures)
    return Spread(median, low, high, len(values))


def cpu_family() -> int | None:
    """Return the vendor's number of the CPU's design, which a cloud's model name may hide."""
    try:
        family = re.search(r"^cpu family\s*: (\d+)$", CPU_INFO.read_text(), re.MULTILINE)
    except OSError:  # not Linux
        return None
    return int(family[1]) if family else None


def describe() -> dict[str, Any]:
    """Return the hardware, the system and the libraries' versions."""
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
    """Return measurements with a new one first, and without an older one of the same machine.

    Parameters
    ----------
    measurements : sequence of dict
        Each with a "machine", see `describe`.
    new : dict
    """

    def hardware(measurement: Mapping[str, Any]) -> list[Any]:
        return [measurement["machine"][key] for key in HARDWARE]

    return [new, *(old for old in measurements if hardware(old) != hardware(new))]
