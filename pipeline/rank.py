"""Rank the recipes of the selection by their validation loss; the test set is not looked at."""

import statistics

from pipeline.core import paths
from pipeline.core.errors import DataError
from pipeline.core.params import Others, Params
from pipeline.core.stage import run_stage
from pipeline.page.text import markdown_table, mean_percent
from pipeline.scores.load import load_curve
from pipeline.scores.ranking import Ranked, last_of_each_seed, rank
from pipeline.scores.significance import verdict

HEADER = (
    "variant", "seeds", "validation loss, nats", "validation accuracy", "behind the best",
    "95 % interval", "p", "verdict",
)  # fmt: skip
NOTHING = "–"


def table_row(ranked: Ranked) -> list[str]:
    """Return a variant's row of text, under `HEADER`."""
    several = len(ranked.losses) > 1
    spread = f" ± {statistics.stdev(ranked.losses):.5f}" if several else ""
    deviation = statistics.stdev(ranked.accuracies) if several else None
    row = [
        ranked.variant,
        str(len(ranked.losses)),
        f"{ranked.loss:.5f}{spread}",
        mean_percent(statistics.mean(ranked.accuracies), deviation),
    ]
    if ranked.difference is None:
        return [*row, NOTHING, NOTHING, NOTHING, NOTHING]
    value, low, high, p = ranked.difference
    told = verdict(-value, p)  # a higher loss is worse
    return [*row, f"{value:+.5f}", f"{low:+.5f} … {high:+.5f}", f"{p:.2g}", told]


def main() -> None:
    """Print a table for each data set of the selection."""
    run: Others = Params().get("selection", Others)
    if not run.datasets:
        raise DataError("selection: lists no data set to compare recipes on; see docs/record.md")
    for dataset in run.datasets:
        found, missing = [], []
        for variant in run.variants:
            path = paths.curve(dataset, variant, "validation")
            if path.exists():
                found.append(last_of_each_seed(load_curve(path), variant))
            else:
                missing.append(variant)
        if not found:
            raise DataError(f"{dataset}: no recipe is trained; train them: make selection")
        print(f"{dataset}: mean validation loss over seeds, the lowest first\n")
        print(markdown_table(map(table_row, rank(found)), HEADER))
        print(
            "\nWelch's t-test against the best, adjusted for the number of recipes by Holm's "
            "method; recipes with one seed cannot be tested."
        )
        if missing:
            print(f"not trained: {', '.join(missing)}")


if __name__ == "__main__":
    run_stage(main)
