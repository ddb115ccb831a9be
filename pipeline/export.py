"""Export a variant's models to ONNX and SavedModel, each checked in its own runtime."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core import paths
from pipeline.core.errors import ExportError
from pipeline.core.files import write_json
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import SplitReader
from pipeline.exporting.onnx_model import OnnxRuntime, make_onnx, save_onnx
from pipeline.exporting.saved_model import SavedModel, save_saved_model
from pipeline.network import storage
from pipeline.network.build import LoadedModel
from pipeline.network.chunks import Evaluate
from pipeline.network.inference import choose_chunk_size, forward_of, load_for

# The runtimes sum in another order; a wrong layer differs by far more.
LARGEST_DIFFERENCE = 1e-2
UNCHECKED = ".unchecked"

Runtime = Callable[[NDArray[np.uint8]], NDArray[np.float32]]


class Agreement(NamedTuple):
    """How far an exported model's answers are the model's own."""

    images: int
    other_predictions: int
    largest_logit_difference: float


def compare(
    loaded: LoadedModel, runtime: Runtime, reader: SplitReader, chunk_size: int, progress: Progress
) -> Agreement:
    """Compare an exported model with the model in float32, on a whole test set in chunks."""
    other, largest = 0, 0.0
    for start, _, expected in forward_of(loaded, chunk_size).run(reader):
        images = reader.read(start, start + len(expected)).images
        received = runtime(images)
        other += int((received.argmax(axis=1) != expected.argmax(axis=1)).sum())
        largest = max(largest, float(np.abs(received - expected).max()))
        progress.advance(len(expected))
    return Agreement(len(reader), other, float(f"{largest:.1g}"))


def require_agreement(name: str, agreement: Agreement) -> None:
    """Check that an exported model may get its name.

    Raises
    ------
    ExportError
        If a prediction differs, or a logit by more than rounding can explain.
    """
    images, other, largest = agreement
    if other or not largest <= LARGEST_DIFFERENCE:
        raise ExportError(
            f"{name}: {other:,} of {images:,} predictions differ from the model's own, and logits "
            f"by up to {largest:g}; it was not written: report it, and use the model itself"
        )


def export(
    path: Path, reader: SplitReader, settings: Evaluate, progress: Progress
) -> dict[str, dict[str, float]]:
    """Export the model at `path`, with other endings in the exports' folder, and check it.

    Returns
    -------
    dict
        The agreement of each format, by its name.
    """
    loaded = load_for(reader, path, "float32")
    target = paths.exports(loaded.description.dataset, loaded.description.variant)
    size = choose_chunk_size(loaded, settings, len(reader))
    weights = {each.path: each.numpy() for each in loaded.network.trainable_variables}
    made = make_onnx(loaded.description, weights)
    of_onnx = compare(loaded, OnnxRuntime(made.SerializeToString()).logits, reader, size, progress)
    require_agreement(f"{path}, as ONNX", of_onnx)
    save_onnx(target / f"{path.stem}.onnx", made)

    unchecked = target / f"{path.stem}{UNCHECKED}"
    shutil.rmtree(unchecked, ignore_errors=True)
    try:
        save_saved_model(unchecked, loaded)
        of_tensorflow = compare(loaded, SavedModel(unchecked).logits, reader, size, progress)
        require_agreement(f"{path}, as a SavedModel", of_tensorflow)
        unchecked.rename(target / path.stem)
    finally:
        shutil.rmtree(unchecked, ignore_errors=True)
    return {"onnx": of_onnx._asdict(), "saved_model": of_tensorflow._asdict()}


def main(dataset: str, variant: str) -> None:
    """Export the models of `variant`, trained on `dataset`."""
    params = Params()
    settings: Evaluate = params.get("evaluate", Evaluate)
    seeds = storage.trained_seeds(paths.models(dataset, variant))
    shutil.rmtree(paths.exports(dataset, variant), ignore_errors=True)
    with (
        SplitReader(paths.prepared(dataset, "test")) as reader,
        Progress(
            f"export {dataset}/{variant}", 2 * len(reader) * len(seeds), "images",
            rate_unit="images",
        ) as progress,
    ):  # fmt: skip
        agreements = {
            str(seed): export(paths.model(dataset, variant, seed), reader, settings, progress)
            for seed in seeds
        }
    write_json(paths.export(dataset, variant), agreements)
    print(f"{dataset}/{variant}: {agreements}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
