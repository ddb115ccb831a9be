import pytest

from benchmarks import scale


@pytest.mark.slow
def test_whole_stages_are_measured() -> None:
    """Each measured stage gives a row with images, seconds and memory."""
    rows = list(scale.measure(100))
    assert [(row["stage"], row["images"]) for row in rows] == [
        ("preprocess", 200), ("evaluate", 100), ("report", 100),
    ]  # fmt: skip
    assert all(row["seconds"] > 0 and row["peak_memory_mb"] > 10 for row in rows)
