"""Numbers, lists and tables as text."""

from collections.abc import Iterable, Sequence

MINUS = "−"


def markdown_table(rows: Iterable[Sequence[object]], header: Sequence[object]) -> str:
    """Return a Markdown table with all columns but the first aligned right."""
    lines = [header, ["---", *["---:"] * (len(header) - 1)], *rows]
    return "\n".join("| " + " | ".join(_escaped(cell) for cell in line) + " |" for line in lines)


def _escaped(cell: object) -> str:
    return str(cell).replace("|", "\\|")


def percent(share: float) -> str:
    """Return a share in percent, with two digits."""
    return f"{share:.2%}"


def mean_percent(share: float, deviation: float | None) -> str:
    """Return a share in percent, with its standard deviation over seeds if there is one."""
    return percent(share) + ("" if deviation is None else f" ± {100 * deviation:.2f}")


def points(share: float) -> str:
    """Return a difference of shares in percentage points, with its sign."""
    return f"{100 * share:+.2f}".replace("-", MINUS)


def count(number: float) -> str:
    """Return a count; a mean of counts gets one decimal."""
    return f"{number:,.0f}" if float(number).is_integer() else f"{number:,.1f}"


def some(items: Sequence[object], shown: int = 10) -> str:
    """Return the first items, and how many more there are."""
    more = len(items) - shown
    text = ", ".join(map(str, items[:shown]))
    return f"{text} and {more:,} more" if more > 0 else text


def listed(names: Sequence[str]) -> str:
    """Return names joined as in a sentence."""
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)
