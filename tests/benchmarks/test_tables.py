import json
from typing import Any

from benchmarks import tables
from benchmarks.processes import ROOT

MACHINE = {
    "device": "CPU (AMD EPYC)", "cpu_family": 25, "bfloat16": False, "cores": 2, "memory_gb": 24.4,
    "system": "Linux x86_64", "python": "3.11", "tensorflow": "2", "keras": "3", "numpy": "2",
}  # fmt: skip
ROW = {"stage": "report", "images": 10_000, "seconds": 2.0, "peak_memory_mb": 150}


def contender(speed: float) -> dict[str, Any]:
    spread = {"low": speed - 1, "high": speed + 1, "repeats": 5}
    return {
        "images_per_second": {"median": speed, **spread},
        "gigaflops": {"median": 200.0, **spread},
        "versions": {},
    }


def scale_on(**machine: object) -> dict[str, Any]:
    return {"machine": MACHINE | machine, "date": "2026-01-01", "figures": [ROW]}


def test_the_speed_up_is_this_projects_throughput_over_the_others() -> None:
    """The last column compares a contender with its own matrix product."""
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


def test_parts_without_results_have_no_section() -> None:
    """The page has the sections of measured parts, each with its note and its machine."""
    text = tables.page({"scale": [scale_on()]})
    assert [line for line in text.splitlines() if line.startswith("#")] == [
        "# Benchmarks",
        "## Scale",
    ]
    assert "\n\nZen 3, 2026-01-01: 2 cores of CPU (AMD EPYC), CPU family 25, without bf" in text
    assert text.endswith("| report | 10,000 | 2.0 s | 200.0 µs | 150 MB |\n")


def test_each_machine_has_its_own_tables() -> None:
    """The tables of the latest machine are open, the others are folded under its description."""
    text = tables.page({"scale": [scale_on(device="CPU (Other)", cores=4), scale_on()]})
    assert text.count("| report | 10,000 | 2.0 s |") == 2
    first, folded = text.split("<details><summary>")
    assert "\n\n2026-01-01: 4 cores of CPU (Other), CPU family 25" in first
    assert folded.startswith("Zen 3, 2026-01-01: 2 cores")
    assert folded.endswith("\n\n</details>\n")


def test_the_committed_page_has_the_committed_results() -> None:
    """docs/benchmarks.md is what `python -m benchmarks --tables` writes."""
    results = json.loads((ROOT / "benchmarks/results.json").read_text())
    assert (ROOT / "docs/benchmarks.md").read_text() == tables.page(results)
