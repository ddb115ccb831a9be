"""The device to compute on: the GPUs if there are any, else the CPU; and its precision."""

import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.core.errors import TrainingError
from pipeline.network.framework import tf
from pipeline.network.layers import Precision

CPU_INFO = Path("/proc/cpuinfo")
# Without these, bfloat16 is emulated and several times slower than float32.
CPU_BFLOAT16 = {"avx512_bf16", "amx_bf16"}
CPU_VECTORS = ("amx", "avx", "f16c", "fma", "sse")
GPU_BFLOAT16_CAPABILITY = (8, 0)


@dataclass(frozen=True)
class Device:
    """Processors of one kind, and whether they support bfloat16."""

    kind: Literal["CPU", "GPU"]
    name: str
    has_bfloat16: bool
    count: int = 1
    instructions: tuple[str, ...] = ()  # a CPU's for vectors, which decide how kernels round

    def precision(self, wanted: Precision) -> str:
        """Return the Keras dtype policy: `wanted`, or the faster one that the device supports."""
        if wanted != "auto":
            return wanted
        return "mixed_bfloat16" if self.has_bfloat16 else "float32"

    def strategy(self, batch_size: int) -> tf.distribute.Strategy:
        """Return the strategy that shares a batch equally among the processors.

        Raises
        ------
        TrainingError
            If the batch cannot be shared equally.
        """
        if self.count == 1:
            return tf.distribute.get_strategy()
        if batch_size % self.count:
            raise TrainingError(
                f"batch_size {batch_size:,} cannot be divided equally among {self.count} "
                f"{self.kind}s; make it a multiple of {self.count}, or let CUDA_VISIBLE_DEVICES "
                "show fewer"
            )
        return tf.distribute.MirroredStrategy(
            [device.name for device in tf.config.list_logical_devices(self.kind)]
        )

    def __str__(self) -> str:
        times = f"{self.count} × " if self.count > 1 else ""
        return f"{times}{self.kind} ({self.name})"


def find_device() -> Device:
    """Return the device that TensorFlow will use, and let a GPU's memory grow as it is needed.

    Call it before the first tensor is made: TensorFlow fixes the setting then.
    """
    gpus = tf.config.list_physical_devices("GPU")
    for gpu in gpus:
        tf.config.experimental.set_memory_growth(gpu, True)
    if gpus:
        details = tf.config.experimental.get_device_details(gpus[0])
        capability = details.get("compute_capability", (0, 0))
        name = details.get("device_name", "unknown")
        return Device("GPU", name, tuple(capability) >= GPU_BFLOAT16_CAPABILITY, len(gpus))
    name, instructions = _describe_cpu()
    has_bfloat16 = not CPU_BFLOAT16.isdisjoint(instructions)
    return Device("CPU", name, has_bfloat16, instructions=instructions)


def _describe_cpu() -> tuple[str, tuple[str, ...]]:
    """Return the processor's name, and its instructions for vectors, if they can be read."""
    try:
        lines = CPU_INFO.read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine(), ()
    fields = dict(line.split(":", 1) for line in lines if ":" in line)
    facts = {key.strip(): value.strip() for key, value in fields.items()}
    name = facts.get("model name", platform.machine())
    flags = facts.get("flags", "").split()
    return name, tuple(sorted({flag for flag in flags if flag.startswith(CPU_VECTORS)}))
