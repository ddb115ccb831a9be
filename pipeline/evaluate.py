"""Measure a trained model on the whole test set, in chunks that fit a memory budget."""

import csv
import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Annotated, Any, Literal, NamedTuple

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray
from pydantic import Field

from pipeline import model, paths
from pipeline.data import SplitReader
from pipeline.device import Precision, find_device
from pipeline.errors import EvaluationError, run_stage
from pipeline.files import whole_file, write_json
from pipeline.memory import MB, PeakMemory
from pipeline.metrics import Totals
from pipeline.params import Params, Section
from pipeline.progress import Progress
from pipeline.variants import PositiveInt

FLOAT32_BYTES = 4
# What the runtime itself takes at the first chunk: its graph, its threads' stacks, its kernels.
RUNTIME_MB = 48.0
# Above this, a larger chunk is no faster.
LARGEST_CHUNK = 1024


class Evaluate(Section):
    """How every model is evaluated."""

    memory_budget_mb: Annotated[float, Field(gt=0)]
    chunk_size: PositiveInt | Literal["auto"]
    precision: Precision


class Chunk(NamedTuple):
    """One part of the test set, measured."""

    start: int
    labels: NDArray[np.uint8]
    logits: NDArray[np.float32]


def choose_chunk_size(description: model.Description, budget_mb: float) -> int:
    """Return how many images can pass through a model at once within a memory budget.

    While a layer computes, its input, its output and a scratch copy as large as the larger of
    both are in memory; the layer that needs most decides.

    Parameters
    ----------
    description : model.Description
        Gives the layers' output shapes.
    budget_mb : float
        Megabytes over the loaded model.

    Raises
    ------
    EvaluationError
        If the budget does not hold one image.
    """
    layers = description.place_layers()
    height, width, channels = description.image_shape
    side = description.network.input_size
    pixels = side**2 * channels if side else height * width * channels
    sizes = [pixels, *(layer.shape.size for layer in layers)]
    values = max(before + after + max(before, after) for before, after in itertools.pairwise(sizes))
    # A layer's kernel may be laid out anew for the processor, once.
    kernel_mb = max(layer.parameters for layer in layers) * FLOAT32_BYTES / MB
    image_mb = values * FLOAT32_BYTES / MB
    fixed_mb = RUNTIME_MB + kernel_mb
    size = int((budget_mb - fixed_mb) / image_mb)
    if size < 1:
        raise EvaluationError(
            f"evaluate.memory_budget_mb of {budget_mb:g} does not hold one image; "
            f"this model needs at least {fixed_mb + image_mb:.0f}"
        )
    return min(size, LARGEST_CHUNK)


class ChunkedForward:
    """Passes a test set through a network in chunks of one compiled shape.

    The last chunk is padded, and what the padding gives is dropped. Where memory runs out, the
    chunk is halved and the same images are tried again.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    chunk_size : int
        Images at once; halved when memory runs out.
    """

    # What a host or a GPU raises when an allocation fails.
    OUT_OF_MEMORY = (tf.errors.ResourceExhaustedError, MemoryError)

    def __init__(self, network: keras.Model, chunk_size: int) -> None:
        self.network = network
        self.chunk_size = chunk_size
        self.backoffs = 0
        self.forward = self._compile()

    def warm_up(self) -> None:
        """Compile, and find out whether a chunk fits.

        Raises
        ------
        EvaluationError
            If memory does not suffice for a single image.
        """
        while True:
            try:
                self.forward(np.zeros((self.chunk_size, *self.network.input_shape[1:]), np.uint8))
            except self.OUT_OF_MEMORY as error:
                self._halve(error)
            else:
                return

    def run(self, reader: SplitReader) -> Iterator[Chunk]:
        """Yield the whole set in order, read chunk by chunk.

        Raises
        ------
        EvaluationError
            If memory does not suffice for a single image.
        """
        start = 0
        while start < len(reader):
            images, labels = reader.read(start, start + self.chunk_size)
            try:
                logits = self.forward(self._pad(images)).numpy()[: len(labels)]
            except self.OUT_OF_MEMORY as error:
                self._halve(error)
                continue
            yield Chunk(start, labels, logits)
            start += len(labels)

    def _compile(self) -> Callable[[NDArray[np.uint8]], tf.Tensor]:
        shape = (self.chunk_size, *self.network.input_shape[1:])

        @tf.function(input_signature=[tf.TensorSpec(shape, tf.uint8)])
        def forward(images: tf.Tensor) -> tf.Tensor:
            return self.network(images, training=False)

        compiled: Callable[[NDArray[np.uint8]], tf.Tensor] = forward
        return compiled

    def _pad(self, images: NDArray[np.uint8]) -> NDArray[np.uint8]:
        missing = self.chunk_size - len(images)
        return np.pad(images, ((0, missing), (0, 0), (0, 0), (0, 0))) if missing else images

    def _halve(self, error: Exception) -> None:
        if self.chunk_size == 1:
            raise EvaluationError(
                "memory does not suffice for a single image; free some, or choose a smaller variant"
            ) from error
        self.chunk_size //= 2
        self.backoffs += 1
        self.forward = self._compile()
        print(f"out of memory: going on with chunks of {self.chunk_size:,} images", flush=True)


@dataclass(frozen=True)
class Evaluated:
    """A test set's totals, and what measuring it took."""

    totals: Totals
    seconds: float
    peak_memory_mb: float
    forward: ChunkedForward

    def metrics(self) -> dict[str, Any]:
        """Return the metrics; speed and memory are measurements and vary from run to run."""
        return {
            **self.totals.metrics(),
            "evaluation": {
                "chunk_size": self.forward.chunk_size,
                "backoffs": self.forward.backoffs,
                "peak_memory_mb": round(self.peak_memory_mb, 1),
                "images_per_second": round(self.totals.n / self.seconds, 1),
            },
        }


def evaluate(
    network: keras.Model,
    classes: int,
    reader: SplitReader,
    chunk_size: int,
    predictions: IO[str],
    progress: Progress,
) -> Evaluated:
    """Measure `network` on a whole test set.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    classes : int
    reader : SplitReader
        Of the test split.
    chunk_size : int
        Images at once.
    predictions : text file
        Takes a CSV row for each image: index, label, prediction, confidence.
    progress : Progress
        Advanced by images.
    """
    totals = Totals(classes)
    forward = ChunkedForward(network, chunk_size)
    memory = PeakMemory()
    forward.warm_up()
    rows = csv.writer(predictions, lineterminator="\n")
    rows.writerow(("index", "label", "prediction", "confidence"))
    begin = time.perf_counter()
    for start, labels, logits in forward.run(reader):
        predicted, confidences = totals.add(logits, labels)
        for offset, (label, prediction, confidence) in enumerate(
            zip(labels, predicted, confidences, strict=True)
        ):
            rows.writerow((start + offset, label, prediction, f"{confidence:.6f}"))
        progress.advance(len(labels), f"{totals.errors} errors")
    seconds = time.perf_counter() - begin
    return Evaluated(totals, seconds, memory.peak_mb(), forward)


def main(dataset: str, variant: str) -> None:
    """Evaluate `variant`, trained on `dataset`, and write predictions and metrics."""
    settings: Evaluate = Params().get("evaluate", Evaluate)
    with SplitReader(paths.prepared(dataset, "test")) as reader:
        precision = find_device().precision(settings.precision)
        network, description = model.load(paths.model(dataset, variant), precision)
        if tuple(description.image_shape) != reader.image_shape:
            raise EvaluationError(
                f"{paths.model(dataset, variant)}: takes images of "
                f"{tuple(description.image_shape)}, the test images are {reader.image_shape}; "
                "train it again on this data set"
            )
        chunk_size = min(
            len(reader),
            choose_chunk_size(description, settings.memory_budget_mb)
            if settings.chunk_size == "auto"
            else settings.chunk_size,
        )
        with (
            Progress(
                f"evaluate {dataset}/{variant}", len(reader), "images", rate_unit="images"
            ) as progress,
            whole_file(paths.predictions(dataset, variant), "w") as predictions,
        ):
            evaluated = evaluate(
                network, description.classes, reader, chunk_size, predictions, progress
            )
    metrics = evaluated.metrics()
    write_json(paths.metrics(dataset, variant), metrics)
    print(f"{dataset}/{variant}: {metrics}")


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
