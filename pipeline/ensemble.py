"""Evaluate an ensemble on the whole test set: the mean of its members' probabilities."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from pipeline.core import paths
from pipeline.core.errors import EvaluationError
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import SplitReader
from pipeline.network.build import LoadedModel
from pipeline.network.chunks import MB, Evaluate
from pipeline.network.device import find_device
from pipeline.network.inference import (
    ChunkedForward,
    choose_chunk_size,
    load_for,
    memory_per_image,
)
from pipeline.scores.ensembles import ONLY_SEED, Ensemble
from pipeline.scores.metrics import Totals
from pipeline.scores.tables import tables_of, write_scores

VALUE_BYTES = 8


def add_probabilities(
    total: NDArray[np.float64],
    loaded: LoadedModel,
    reader: SplitReader,
    chunk_size: int,
    progress: Progress,
) -> None:
    """Add a model's calibrated probabilities for each test image to `total`, (n, classes)."""
    forward = ChunkedForward(loaded.network, chunk_size, memory_per_image(loaded))
    forward.warm_up()
    for start, labels, logits in forward.run(reader):
        wide = logits.astype(np.float64) / loaded.description.temperature
        total[start : start + len(labels)] += softmax(wide, axis=1)
        progress.advance(len(labels))


def require_trained(models: list[Path]) -> None:
    """Check that each member's model is there.

    Raises
    ------
    EvaluationError
        If one is not.
    """
    for model in models:
        if not model.is_file():
            raise EvaluationError(
                f"{model}: is a member of the ensemble and not trained; train its variant with "
                "that seed, or correct the list in params.yaml"
            )


def main(dataset: str, ensemble: str) -> None:
    """Evaluate `ensemble`, of models trained on `dataset`; write predictions and metrics."""
    params = Params()
    settings: Evaluate = params.get("evaluate", Evaluate)
    row: Ensemble = params.get(f"ensembles.{ensemble}", Ensemble)
    models = [paths.model(dataset, *member) for member in row.models]
    require_trained(models)
    precision = find_device().precision(settings.precision)
    with (
        SplitReader(paths.prepared(dataset, "test")) as reader,
        Progress(
            f"evaluate {dataset}/{ensemble}", len(reader) * len(models), "images",
            rate_unit="images",
        ) as progress,
    ):  # fmt: skip
        total = np.zeros((0, 0))
        for model in models:
            loaded = load_for(reader, model, precision)
            if not total.size:
                total = np.zeros((len(reader), loaded.description.classes))
            left = settings.memory_budget_mb - total.size * VALUE_BYTES / MB
            rest = settings.model_copy(update={"memory_budget_mb": left})
            size = choose_chunk_size(loaded, rest, len(reader))
            add_probabilities(total, loaded, reader, size, progress)
        totals = Totals(total.shape[1])
        with tables_of(dataset, ensemble) as tables:
            for start in range(0, len(reader), size):
                labels = reader.read(start, start + size).labels
                # The logarithm of probabilities is as good as any other logits of them.
                mean = total[start : start + size] / len(models)
                logits = np.log(mean.clip(np.finfo(np.float64).tiny))
                tables.add(ONLY_SEED, start, labels, *totals.add(logits, labels))
    write_scores(dataset, ensemble, {ONLY_SEED: totals}, precision)
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "ensemble")
