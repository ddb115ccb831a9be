import pytest

from pipeline.page import text


def test_a_markdown_table_has_header_rule_and_rows() -> None:
    """A table has a header, a rule and a line for each row; a bar in a cell does not end it."""
    assert text.markdown_table([["a|b", 1], ["c", 2.5]], ["name", "n"]).splitlines() == [
        "| name | n |", "| --- | ---: |", "| a\\|b | 1 |", "| c | 2.5 |",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (text.points(0.0123), "+1.23"),
        (text.points(-0.0123), "−1.23"),
        (text.points(0.0), "+0.00"),
        (text.percent(0.9942), "99.42%"),
        (text.mean_percent(0.9942, None), "99.42%"),
        (text.mean_percent(0.9942, 0.00123), "99.42% ± 0.12"),
        (text.count(1234), "1,234"),
        (text.count(58.333), "58.3"),
        (text.some([1, 2, 3], 2), "1, 2 and 1 more"),
        (text.some([1, 2], 2), "1, 2"),
        (text.listed(["a"]), "a"),
        (text.listed(["a", "b", "c"]), "a, b and c"),
    ],
)
def test_numbers_and_lists_are_readable(shown: str, expected: str) -> None:
    """Differences have a sign, counts have commas, and lists end in "and"."""
    assert shown == expected
