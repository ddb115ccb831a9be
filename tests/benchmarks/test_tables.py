from pathlib import Path
from typing import Any

from benchmarks import tables

MACHINE = {
    "device": "CPU (Some CPU)", "cpu_family": 25, "bfloat16": False, "cores": 2, "memory_gb": 24.4,
    "system": "Linux x86_64", "python": "3.11", "tensorflow": "2", "keras": "3", "numpy": "2",
}  # fmt: skip


def contender(speed: float) -> dict[str, Any]:
    spread = {"low": speed - 1, "high": speed + 1, "repeats": 5}
    return {
        "images_per_second": {"median": speed, **spread},
        "gigaflops": {"median": 200.0, **spread},
        "versions": {},
    }


def test_ratios_say_by_how_much_this_project_is_faster() -> None:
    """A ratio is this project's speed over the other's; the share is of the matrix product."""
    figures = {
        "some": {
            "train": {
                "operations_per_image": 10**9,
                "contenders": {"this project": contender(150), "Keras": contender(100)},
            }
        }
    }
    table = tables.throughput(figures)
    assert "| this project | 150 | 149 – 151 |  | 150 | 75% |" in table
    assert "| Keras | 100 | 99 – 101 | 1.50 | 100 | 50% |" in table


def test_only_what_was_measured_is_replaced(tmp_path: Path) -> None:
    """Text outside of the marks stays, and so does a table without new figures."""
    page = tmp_path / "page.md"
    page.write_text(
        "A\n<!-- scale -->\nold\n<!-- end -->\nB\n<!-- chunks -->\nkept\n<!-- end -->\n"
    )
    row = {"stage": "report", "images": 10_000, "seconds": 2.0, "peak_memory_mb": 150}
    results = {"scale": [{"machine": MACHINE, "date": "2026-01-01", "figures": [row]}]}
    for _ in range(2):
        tables.update(page, results)
    text = page.read_text()
    assert text.startswith(
        "A\n<!-- scale -->\nMeasured on 2026-01-01: 2 cores of CPU (Some CPU), CPU family 25, w"
    )
    assert "| report | 10,000 | 2.0 s | 200.0 µs | 150 MB |" in text
    assert text.endswith("<!-- end -->\nB\n<!-- chunks -->\nkept\n<!-- end -->\n")
    assert "old" not in text


def test_each_machine_has_its_own_tables(tmp_path: Path) -> None:
    """The first machine is shown, the second one folded under its description."""
    page = tmp_path / "page.md"
    page.write_text("<!-- scale -->\n<!-- end -->\n")
    row = {"stage": "report", "images": 10_000, "seconds": 2.0, "peak_memory_mb": 150}
    measurements = [
        {"machine": MACHINE | {"cores": cores}, "date": "2026-01-01", "figures": [row]}
        for cores in (4, 2)
    ]
    tables.update(page, {"scale": measurements})
    text = page.read_text()
    assert text.count("| report | 10,000 | 2.0 s |") == 2
    first, folded = text.split("<details><summary>")
    assert first.startswith("<!-- scale -->\nMeasured on 2026-01-01: 4 cores")
    assert folded.startswith("on 2026-01-01: 2 cores")
    assert folded.endswith("\n\n</details>\n<!-- end -->\n")


def test_the_share_of_checkpoints_is_told() -> None:
    """A row for each variant, with the share as a percentage."""
    figures = {"net": {"seconds": 100.0, "saves": 2, "saving_seconds": 1.0, "share": 0.01}}
    assert tables.checkpoints(figures).splitlines()[-1] == (
        "| `net` | 100.0 s | 2 | 1.00 s | 1.00% |"
    )
