"""Evaluate a trained variant on the whole test set, in chunks that fit a memory budget."""

from pipeline.core import paths
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import SplitReader
from pipeline.network import storage
from pipeline.network.build import LoadedModel
from pipeline.network.chunks import Evaluate
from pipeline.network.device import find_device
from pipeline.network.inference import choose_chunk_size, forward_of, load_for
from pipeline.network.parts import count_parts, use_cores
from pipeline.scores.metrics import Totals
from pipeline.scores.tables import PredictionTables, tables_of, write_scores


def evaluate(
    loaded: LoadedModel,
    seed: int,
    reader: SplitReader,
    chunk_size: int,
    tables: PredictionTables,
    progress: Progress,
) -> Totals:
    """Evaluate a model, trained with `seed`, on a whole test set in chunks of `chunk_size` images.

    Each image has a row in `tables`, and advances `progress` by one.
    """
    totals = Totals(loaded.description.classes, loaded.description.temperature)
    forward = forward_of(loaded, chunk_size)
    forward.warm_up()
    for start, labels, logits in forward.run(reader):
        tables.add(seed, start, labels, *totals.add(logits, labels))
        progress.advance(len(labels), f"{totals.errors} errors")
    return totals


def main(dataset: str, variant: str) -> None:
    """Evaluate `variant`, trained on `dataset`; write predictions, mistakes and metrics."""
    params = Params()
    settings: Evaluate = params.get("evaluate", Evaluate)
    seeds = storage.trained_seeds(paths.models(dataset, variant))
    device = find_device()
    use_cores(count_parts(storage.describe(paths.model(dataset, variant, seeds[0])), device))
    precision = device.precision(settings.precision)
    totals = {}
    with (
        SplitReader(paths.prepared(dataset, "test")) as reader,
        Progress(
            f"evaluate {dataset}/{variant}", len(reader) * len(seeds), "images", rate_unit="images"
        ) as progress,
        tables_of(dataset, variant) as tables,
    ):
        for seed in seeds:
            loaded = load_for(reader, paths.model(dataset, variant, seed), precision)
            size = choose_chunk_size(loaded, settings, len(reader))
            totals[seed] = evaluate(loaded, seed, reader, size, tables, progress)
    write_scores(dataset, variant, totals, precision)
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
