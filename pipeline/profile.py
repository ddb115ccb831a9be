"""Measure a variant on this machine: its speed, and its memory by the images in a batch.

The results are measurements: git keeps them, and they change only when this stage's code or
settings do. Weights do not matter to them, so nothing needs to be trained.
"""

import platform
import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
from pydantic import PositiveInt

from pipeline.core import paths
from pipeline.core.files import write_json, write_text
from pipeline.core.params import Params
from pipeline.core.progress import Progress
from pipeline.core.stage import require_unchanged, run_stage
from pipeline.datasets.splits import Classes, Split, SplitReader, class_names
from pipeline.network.build import Description, LoadedModel, build, build_for_inference
from pipeline.network.chunks import MB, Evaluate, Profile
from pipeline.network.device import find_device
from pipeline.network.folding import fold_description
from pipeline.network.framework import keras, tf
from pipeline.network.inference import choose_chunk_size, forward_of
from pipeline.network.layers import Initializer, Layer, Network, Precision
from pipeline.network.memory import PeakMemory, free_bytes
from pipeline.network.parts import count_parts, lay_out, use_cores
from pipeline.training.learner import Learner

# The share of the free memory that may be used; the rest is for what the estimate misses.
LARGEST_SHARE = 0.5


class Row(NamedTuple):
    """The peak memory on top of the loaded model with so many images in a batch."""

    images: int
    peak_memory_mb: float


def measure_memory(
    passes: Sequence[tuple[int, Callable[[], object]]],
    chunk_size: int,
    free_mb: float,
    progress: Progress,
) -> list[Row]:
    """Measure the peak memory of forward passes, the smallest batch first.

    Parameters
    ----------
    passes : sequence of (int, callable)
        The number of images in a batch, rising, and what runs such a pass.
    chunk_size : int
        Batches up to this one always run, as evaluation runs them.
    free_mb : float
        A larger batch is skipped if extrapolation from the previous one predicts more than half of
        this free memory.
    progress : Progress
        Advanced by images.
    """
    memory = PeakMemory()
    rows: list[Row] = []
    for images, run in passes:
        expected = rows[-1].peak_memory_mb * images / rows[-1].images if rows else 0
        if images > chunk_size and expected > LARGEST_SHARE * free_mb:
            print(f"{images:,} images: skipped, they need {expected:,.0f} MB of {free_mb:,.0f}")
            break
        run()
        rows.append(Row(images, round(memory.peak_mb(), 1)))
        progress.advance(images, f"{images:,} images take {rows[-1].peak_memory_mb:,.0f} MB")
    return rows


def training_speed(
    description: Description, batch_size: int, steps: int, precision: str, reader: SplitReader
) -> float:
    """Return images per second in training: the median of `steps` steps, once compiled."""
    device = find_device()
    layout = lay_out(description, batch_size, device)
    with device.strategy(batch_size).scope():
        network = build(description, precision=precision)
        learner = Learner(network, batch_size, parts=layout.parts)
        images, labels = (np.stack([each] * layout.steps) for each in _batch(reader, batch_size))
        seconds = []
        for _ in range(steps + 1):
            begin = time.perf_counter()
            learner.learn(images, labels, [1e-4] * layout.steps)
            learner.first_bad_step  # noqa: B018 - waits for the step
            seconds.append(time.perf_counter() - begin)
    return batch_size * layout.steps / statistics.median(seconds[1:])


def _batch(reader: SplitReader, size: int) -> Split:
    """Return a batch of a split, whose images are repeated if it has too few."""
    return Split(*(np.resize(each, (size, *each.shape[1:])) for each in reader.read(0, size)))


def profile(
    loaded: LoadedModel, reader: SplitReader, chunk_size: int, batches: Sequence[int]
) -> tuple[list[Row], float]:
    """Measure memory by the images in a batch, and the speed of evaluation in chunks.

    Parameters
    ----------
    loaded : LoadedModel
    reader : SplitReader
        The test split.
    chunk_size : int
        Images per chunk in evaluation.
    batches : sequence of int
        Other numbers of images; the whole test set is added to them.

    Returns
    -------
    rows : list of Row
        The row of `chunk_size` is that of the whole test set in chunks.
    images_per_second : float
        In evaluation.
    """
    network = loaded.network
    whole = tf.function(
        lambda images: network(images, training=False),
        input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)],
    )
    chunks = forward_of(loaded, chunk_size)
    seconds = 0.0

    def in_chunks() -> None:
        nonlocal seconds
        chunks.warm_up()
        begin = time.perf_counter()
        for _ in chunks.run(reader):
            pass
        seconds = time.perf_counter() - begin

    def in_one_batch(images: int) -> Callable[[], object]:
        return lambda: whole(reader.read(0, images).images)

    sizes = sorted({*(size for size in batches if size < len(reader)), len(reader), chunk_size})
    passes = [(size, in_chunks if size == chunk_size else in_one_batch(size)) for size in sizes]
    with Progress("profile", sum(sizes), "images", rate_unit="images") as progress:
        rows = measure_memory(passes, chunk_size, free_bytes() / MB, progress)
    return rows, len(reader) / seconds


def main(dataset: str, variant: str) -> None:
    """Measure `variant` on the test images of `dataset`."""
    params = Params()
    settings: Profile = params.get("profile", Profile)
    evaluation: Evaluate = params.get("evaluate", Evaluate)
    wanted: Precision = params.get("train.precision", Precision)
    batch_size: int = params.get(f"variants.{variant}.batch_size", PositiveInt)
    device = find_device()
    with SplitReader(paths.prepared(dataset, "test")) as reader:
        description = Description(
            dataset=dataset,
            variant=variant,
            image_shape=list(reader.image_shape),
            classes=len(class_names(params.get(f"datasets.{dataset}.classes", Classes))),
            network=Network(
                input_size=params.get(f"variants.{variant}.input_size", PositiveInt | None),
                initializer=Initializer(type="he_normal"),
                layers=params.get(f"variants.{variant}.layers", list[Layer]),
            ),
        )
        folded = fold_description(description)
        use_cores(count_parts(folded, device))
        loaded = build_for_inference(folded, device.precision(evaluation.precision))
        chunk_size = choose_chunk_size(loaded, evaluation, len(reader))
        rows, evaluation_speed = profile(loaded, reader, chunk_size, settings.chunk_sizes)
        speed = training_speed(
            description, batch_size, settings.training_steps, device.precision(wanted), reader
        )
    figures = {
        "device": str(device),
        "versions": {
            "python": platform.python_version(),
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
        },
        "training_images_per_second": round(speed, 1),
        "evaluation_images_per_second": round(evaluation_speed, 1),
        "chunk_size": chunk_size,
        "peak_memory_mb": next(row.peak_memory_mb for row in rows if row.images == chunk_size),
    }
    lines = [",".join(Row._fields), *(f"{images},{peak}" for images, peak in rows)]
    write_text(paths.memory(dataset, variant), "\n".join(lines) + "\n")
    write_json(paths.profile(dataset, variant), figures)
    print(f"{dataset}/{variant}: {figures}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
