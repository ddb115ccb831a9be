"""How much memory this process takes, and the most that it took since it was asked to watch."""

import ctypes
import sys
from contextlib import suppress
from pathlib import Path

import psutil

from pipeline.framework import tf

MB = 1e6  # memory is given in megabytes of 10⁶ bytes

_CLEAR = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")
_RESET_PEAK = "5"  # man 5 proc


class PeakMemory:
    """The most memory over a baseline: resident on the host, plus allocated on a GPU.

    Made where the baseline is, for example once a model is loaded. On Linux the kernel keeps the
    peak; elsewhere it is the highest of the samples taken by `peak_mb`.
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
        """Return the most memory over the baseline so far, in megabytes."""
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
    """Give freed memory back to the system, so that the baseline is what is really in use."""
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # a C library other than glibc
            ctypes.CDLL("libc.so.6").malloc_trim(0)
