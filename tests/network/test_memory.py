from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline.network import memory
from pipeline.network.memory import PeakMemory, free_bytes


@pytest.mark.parametrize("kernel_keeps_peak", [True, False])
def test_the_peak_is_what_was_used_on_top_of_the_baseline(kernel_keeps_peak: bool) -> None:
    """Using 100 MB raises the peak by about 100 MB, and freeing them does not lower it."""
    before = np.ones(20_000_000, np.uint8)
    watch = PeakMemory()
    watch.kernel_keeps_peak &= kernel_keeps_peak
    held = np.ones(100_000_000, np.uint8)
    assert 95 < watch.peak_mb() < 130
    del held, before
    assert 95 < watch.peak_mb() < 130


def test_the_peak_starts_at_zero() -> None:
    """Memory that was in use before does not count."""
    held = np.ones(100_000_000, np.uint8)
    assert PeakMemory().peak_mb() < 20
    del held


def test_other_systems_take_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the kernel records no peak, the highest sample is the peak."""
    monkeypatch.setattr(memory, "_CLEAR", Path("/nonexistent/clear_refs"))
    watch = PeakMemory()
    assert not watch.kernel_keeps_peak
    assert watch.peak_mb() >= 0


@pytest.fixture
def groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put fake control groups in the place of the real ones."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_GROUP_ROOT", tmp_path / "fs")
    return tmp_path


V2 = "memory.max", "memory.current"
V1 = "memory.limit_in_bytes", "memory.usage_in_bytes"


def limit(folder: Path, names: tuple[str, str], limit: object, used: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / names[0]).write_text(f"{limit}\n")
    (folder / names[1]).write_text(f"{used}\n")


def test_without_limits_the_machines_memory_is_free(groups: Path) -> None:
    """Without control groups, or with unlimited ones, the machine's available memory is free."""
    available = psutil.virtual_memory().available
    assert free_bytes() == pytest.approx(available, rel=0.1)
    (groups / "cgroup").write_text("0::/job\n")
    limit(groups / "fs/job", V2, "max", 1)
    assert free_bytes() == pytest.approx(available, rel=0.1)


@pytest.mark.parametrize("path", ["/", "/job"])
def test_a_group_limits_free_memory(groups: Path, path: str) -> None:
    """A version 2 group, even at a container's root, limits free memory to what it has left."""
    (groups / "cgroup").write_text(f"0::{path}\n")
    limit(groups / f"fs{path}", V2, 50_000_000, 20_000_000)
    assert free_bytes() == 30_000_000


@pytest.mark.parametrize("inner", ["max", "90000000"])
def test_the_tightest_of_nested_groups_counts(groups: Path, inner: str) -> None:
    """A limit of any group above this process's own counts as well."""
    (groups / "cgroup").write_text("0::/batch/job/step\n")
    limit(groups / "fs/batch/job/step", V2, inner, 1_000_000)
    limit(groups / "fs/batch/job", V2, 50_000_000, 20_000_000)
    limit(groups / "fs/batch", V2, 100_000_000, 20_000_000)
    assert free_bytes() == 30_000_000


def test_groups_of_version_1_limit_free_memory(groups: Path) -> None:
    """Of version 1's groups that of the memory controller counts, and those above it."""
    (groups / "cgroup").write_text("12:cpu,cpuacct:/job\n4:hugetlb,memory:/job/step\n0::/job\n")
    limit(groups / "fs/memory/job/step", V1, 2**63 - 4096, 1_000_000)
    limit(groups / "fs/memory/job", V1, 50_000_000, 20_000_000)
    limit(groups / "fs/job", V1, 1_000, 0)  # of another controller
    assert free_bytes() == 30_000_000


def test_a_container_of_version_1_sees_its_limit_at_the_root(groups: Path) -> None:
    """In a container its group's path may not exist inside; its limit is then at the root."""
    (groups / "cgroup").write_text("4:memory:/docker/0123abcd\n")
    limit(groups / "fs/memory", V1, 50_000_000, 20_000_000)
    assert free_bytes() == 30_000_000


def test_free_memory_is_never_negative(groups: Path) -> None:
    """A group that uses more than its limit has no memory free."""
    (groups / "cgroup").write_text("0::/\n")
    limit(groups / "fs", V2, 10, 20)
    assert free_bytes() == 0
