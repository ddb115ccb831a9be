"""Compare revisions: which variants became better or worse, and which show no evidence of either.

``python -m pipeline.compare [REV …]`` compares each revision with the first one, for every data set
and variant; by default the workspace with HEAD. A REV is a commit, branch, tag, DVC experiment or
``workspace``. The same test images are compared pair by pair (McNemar's exact test).
"""

import argparse
import math
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import DataError, OutputError
from pipeline.core.files import write_text
from pipeline.core.stage import show_what_can_be_shown
from pipeline.page.comparisons import FORMATS
from pipeline.scores.comparison import Outcome, compare_revisions
from pipeline.scores.revisions import WORKSPACE, Revisions


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the command line's arguments."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(
        prog="python -m pipeline.compare", description=__doc__, formatter_class=formatter
    )
    parser.add_argument("revisions", nargs="*", metavar="REV", help="the first one is the baseline")
    parser.add_argument("--format", choices=FORMATS, default="text")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write to this file instead")
    parser.add_argument(
        "--fail-if-worse", action="store_true", help="exit with 1 if a variant became worse"
    )
    parser.add_argument(
        "--tolerance", type=float, default=0.0, metavar="POINTS",
        help="accuracy loss to tolerate, in percentage points (default: 0)",
    )  # fmt: skip
    parsed = parser.parse_args(arguments)
    if not 0 <= parsed.tolerance < math.inf:
        parser.error(f"--tolerance: expected at least 0, received {parsed.tolerance}")
    given = parsed.revisions or ["HEAD"]
    parsed.revisions = given if len(given) > 1 else [*given, WORKSPACE]
    if len(set(parsed.revisions)) == 1:
        parser.error(f"expected two revisions to compare, received {parsed.revisions[0]} twice")
    return parsed


def main(arguments: Sequence[str] | None = None) -> int:
    """Print the comparison; return 1 if a revision is unreadable, or a variant became worse."""
    parsed = parse_arguments(arguments)
    show_what_can_be_shown()
    try:
        outcome = compare_revisions(Revisions(Path.cwd()), parsed.revisions)
        if outcome.comparisons:
            text = FORMATS[parsed.format](outcome)
            if parsed.output:
                write_text(parsed.output, text + "\n")
            else:
                print(text)
        elif outcome.notes:
            print("\n".join(outcome.notes))
    except (DataError, OutputError) as error:
        outcome = Outcome([], [], [str(error)], {})
    for reason in outcome.errors:
        print(f"error: {reason}", file=sys.stderr)
    worse = [
        each
        for each in outcome.comparisons
        # Rounded, so that a loss of 57 in 10,000 is not more than 0.57 points.
        if each.verdict == "worse" and round(-100 * each.difference.value, 9) > parsed.tolerance
    ]
    if parsed.fail_if_worse and worse:
        named = ", ".join(f"{each.dataset} / {each.variant} at {each.revision}" for each in worse)
        print(f"error: worse than {worse[0].baseline}: {named}", file=sys.stderr)
        return 1
    return 1 if outcome.errors else 0


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # the reader, such as head, may have enough
    sys.exit(main())
