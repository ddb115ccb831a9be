"""Peak memory of this process, and the memory that is free."""

import ctypes
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.network.chunks import MB
from pipeline.network.framework import tf

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"
_GROUPS = Path("/proc/self/cgroup")
_GROUP_ROOT = Path("/sys/fs/cgroup")


class PeakMemory:
    """The peak memory on top of a baseline: resident on the host, plus allocated on GPUs.

    The baseline is what is in use when this is created, for example once a model is loaded. On
    Linux the kernel records the peak: writing 5 to ``clear_refs`` resets it, and ``VmHWM`` reads it
    (man 5 proc). Elsewhere it is the highest of the samples taken by `peak_mb`.
    """

    def __init__(self) -> None:
        _return_free_memory()
        self.kernel_keeps_peak = True
        try:
            _CLEAR.write_text(_RESET_PEAK)
            self._kernel_peak()
        except (OSError, LookupError):
            self.kernel_keeps_peak = False
        self.gpus = [device.name for device in tf.config.list_logical_devices("GPU")]
        for gpu in self.gpus:
            tf.config.experimental.reset_memory_stats(gpu)
        self.highest = self.baseline = self._resident() + self._on_gpus("current")

    def peak_mb(self) -> float:
        """Return the peak so far on top of the baseline, in megabytes."""
        resident = self._kernel_peak() if self.kernel_keeps_peak else self._resident()
        self.highest = max(self.highest, resident + self._on_gpus("peak"))
        return (self.highest - self.baseline) / MB

    def _resident(self) -> int:
        return int(psutil.Process().memory_info().rss)

    def _kernel_peak(self) -> int:
        fields = dict(line.split(":", 1) for line in _STATUS.read_text().splitlines())
        return int(fields["VmHWM"].split()[0]) * 1024

    def _on_gpus(self, which: str) -> int:
        return sum(tf.config.experimental.get_memory_info(gpu)[which] for gpu in self.gpus)


def _return_free_memory() -> None:
    """Return freed memory to the system, so that the baseline is what is really in use."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)


def free_bytes() -> int:
    """Return the memory that this process may still use, in bytes.

    It is what the machine has available, or less if a control group (of a container or a batch
    system) limits it: this process's group, or any above it.
    """
    free = int(psutil.virtual_memory().available)
    for limit, used in _control_groups():
        with suppress(OSError, ValueError):  # "max" is not a number: no limit
            free = min(free, int(limit.read_text()) - int(used.read_text()))
    return max(0, free)


def _control_groups() -> Iterator[tuple[Path, Path]]:
    """Yield the files with limit and use of this process's groups, of version 2 and version 1."""
    try:
        entries = _GROUPS.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return
    for _, controllers, group in (entry.split(":", 2) for entry in entries):
        if controllers and "memory" not in controllers.split(","):
            continue
        top = _GROUP_ROOT / "memory" if controllers else _GROUP_ROOT
        names = ("memory.limit_in_bytes", "memory.usage_in_bytes") if controllers else (
            "memory.max", "memory.current",
        )  # fmt: skip
        folder = top / group.lstrip("/")
        for each in [folder, *folder.parents]:
            yield each / names[0], each / names[1]
            if each == top:
                break
