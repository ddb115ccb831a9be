"""What Dask's scheduler tells of its workers."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Worker:
    """A worker as the scheduler sees it.

    Attributes
    ----------
    address, name : str
    total, used : dict of str to float
        Its places for stages (``SLOT``), GPUs (``GPU``) and memory in GB (``MEMORY``).
    """

    address: str
    name: str
    total: dict[str, float]
    used: dict[str, float]

    def without(self, taken: Mapping[str, float]) -> "Worker":
        """Return the worker as others use it, of which `taken` is ours."""
        used = {kind: max(0, amount - taken.get(kind, 0)) for kind, amount in self.used.items()}
        return replace(self, used=used)

    def free(self, taken: Mapping[str, float]) -> dict[str, float]:
        """Return what is free if `taken` is used as well."""
        return {
            kind: amount - self.used.get(kind, 0) - taken.get(kind, 0)
            for kind, amount in self.total.items()
        }


def name_for(machine: str, process: int) -> str:
    """Return a name for Dask, which wants each worker to have its own."""
    return f"{machine} ({process})"


def name_of(name: object) -> str:
    """Return the machine's part of a worker's name."""
    return str(name).rpartition(" (")[0] or str(name)


def report(dask_scheduler: Any) -> list[Worker]:
    """Return the workers that take stages; called on the scheduler."""
    return [
        Worker(each.address, name_of(each.name), dict(each.resources), dict(each.used_resources))
        for each in dask_scheduler.workers.values()
        if each.status.name == "running" and each.resources.get("SLOT")
    ]
