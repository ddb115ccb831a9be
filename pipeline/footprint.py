"""Measure the memory that a variant takes, by how many images it is given at once.

The last row is the whole test set at once, which is what ends many evaluations. Weights do not
matter to it, so that nothing needs to be trained.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
from pydantic import AfterValidator, Field

from pipeline import model, paths
from pipeline.data import Classes, SplitReader
from pipeline.device import Precision, find_device
from pipeline.files import write_text
from pipeline.framework import keras, tf
from pipeline.memory import MB, PeakMemory
from pipeline.params import Params, Section
from pipeline.progress import Progress
from pipeline.stage import require_unchanged, run_stage
from pipeline.variants import Initializer, Layer, Network, PositiveInt

# Of the memory that is free; the rest is for what the measurement does not foresee.
LARGEST_SHARE = 0.5
CGROUP = Path("/sys/fs/cgroup")


def _rising(sizes: list[int]) -> list[int]:
    if sizes != sorted(set(sizes)):
        raise ValueError(f"expected rising numbers, received {sizes}")
    return sizes


class Footprint(Section):
    """How many images are given at once."""

    chunk_sizes: Annotated[list[PositiveInt], Field(min_length=1), AfterValidator(_rising)]


class Row(NamedTuple):
    """The most memory over the loaded model with so many images at once."""

    chunk_size: int
    peak_memory_mb: float


def free_mb() -> float:
    """Return the memory that this process may still take, in megabytes."""
    free = psutil.virtual_memory().available
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((CGROUP / "memory.current").read_text()))
    except (OSError, ValueError):  # another system, or no such limit
        pass
    return free / MB


def measure(
    network: keras.Model, reader: SplitReader, chunk_sizes: Sequence[int], free: float
) -> list[Row]:
    """Measure a network on the first images of a test set, the smallest chunk first.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    reader : SplitReader
        Of the test split.
    chunk_sizes : sequence of int
        Rising; those that the test set does not fill are left out.
    free : float
        Megabytes that may be taken. A chunk that would take more than half of them, as far as the
        one before tells, is not tried.
    """
    forward = tf.function(
        lambda images: network(images, training=False),
        input_signature=[tf.TensorSpec((None, *network.input_shape[1:]), tf.uint8)],
    )
    sizes = [size for size in chunk_sizes if size < len(reader)] + [len(reader)]
    memory = PeakMemory()
    rows: list[Row] = []
    with Progress("footprint", sum(sizes), "images", rate_unit="images") as progress:
        for size in sizes:
            expected = rows[-1].peak_memory_mb * size / rows[-1].chunk_size if rows else 0
            if expected > LARGEST_SHARE * free:
                print(f"{size:,} images at once: not tried, {expected:,.0f} MB of {free:,.0f}")
                break
            forward(reader.read(0, size).images)
            rows.append(Row(size, round(memory.peak_mb(), 1)))
            progress.advance(size, f"{size:,} at once take {rows[-1].peak_memory_mb:,.0f} MB")
    return rows


def main(dataset: str, variant: str) -> None:
    """Measure `variant` on the test set of `dataset`."""
    params = Params()
    settings: Footprint = params.get("footprint", Footprint)
    precision: Precision = params.get("evaluate.precision", Precision)
    with SplitReader(paths.prepared(dataset, "test")) as reader:
        description = model.Description(
            dataset=dataset,
            variant=variant,
            image_shape=list(reader.image_shape),
            classes=params.get(f"datasets.{dataset}.classes", Classes),
            network=Network(
                input_size=params.get(f"variants.{variant}.input_size", PositiveInt | None),
                initializer=Initializer(type="he_normal"),
                layers=params.get(f"variants.{variant}.layers", list[Layer]),
            ),
        )
        loaded = model.build_for_inference(description, find_device().precision(precision))
        rows = measure(loaded.network, reader, settings.chunk_sizes, free_mb())
    lines = [",".join(Row._fields), *(f"{size},{peak}" for size, peak in rows)]
    write_text(paths.footprint(dataset, variant), "\n".join(lines) + "\n")
    print(f"{dataset}/{variant}: {rows}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
