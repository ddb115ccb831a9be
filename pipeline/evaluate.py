"""Measure a trained model on the whole test set, in chunks that fit a memory budget."""

import itertools
import math
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline import model, paths
from pipeline.data import Split, SplitReader
from pipeline.device import Precision, find_device
from pipeline.errors import EvaluationError
from pipeline.files import whole_file, write_json, write_text
from pipeline.framework import keras, tf
from pipeline.memory import MB, PeakMemory
from pipeline.metrics import Totals, over_seeds
from pipeline.params import Params, Section
from pipeline.progress import Progress
from pipeline.stage import require_unchanged, run_stage
from pipeline.variants import PositiveInt

COLUMNS = ("seed", "index", "label", "prediction", "confidence")
# What the runtime itself takes at the first chunk: its graph, its threads' stacks, its kernels.
RUNTIME_MB = 48.0
# How oneDNN's kernels say so, in an AbortedError; dnnl_out_of_memory is 1.
ONEDNN_OUT_OF_MEMORY = "Status: 1,"
# Up to this, larger chunks are as fast or faster; none larger was measured.
LARGEST_CHUNK = 4096


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


def bytes_per_image(loaded: model.LoadedModel) -> int:
    """Return how much memory one image takes on its way through a model, in bytes.

    While a layer computes, its input, its output and two scratch copies as large as the larger of
    both may be in memory; the layer that needs most decides. Values are as wide as weights.
    """
    network, description = loaded
    height, width, channels = description.image_shape
    side = description.network.input_size
    pixels = side**2 * channels if side else height * width * channels
    sizes = [pixels, *(layer.shape.size for layer in description.place_layers())]
    values = max(
        before + after + 2 * max(before, after) for before, after in itertools.pairwise(sizes)
    )
    width_in_bytes: int = tf.as_dtype(network.weights[0].dtype).size
    return values * width_in_bytes


def choose_chunk_size(loaded: model.LoadedModel, budget_mb: float) -> int:
    """Return how many images can pass through a model at once within a memory budget.

    Parameters
    ----------
    loaded : model.LoadedModel
        Gives the layers' output shapes, and the type that they compute in.
    budget_mb : float
        Megabytes over the loaded model.

    Raises
    ------
    EvaluationError
        If the budget does not hold one image.
    """
    image_mb = bytes_per_image(loaded) / MB
    size = int((budget_mb - RUNTIME_MB) / image_mb)
    if size < 1:
        raise EvaluationError(
            f"evaluate.memory_budget_mb of {budget_mb:g} does not hold one image; "
            f"this model needs at least {math.ceil(RUNTIME_MB + image_mb)}"
        )
    return min(size, LARGEST_CHUNK)


def read_ahead(reader: SplitReader, chunk_size: int) -> Iterator[Split]:
    """Yield a split in chunks, each one read while the one before it is worked on."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(reader.read, 0, chunk_size)
        for stop in range(chunk_size, len(reader) + chunk_size, chunk_size):
            chunk = ahead.result()
            if stop < len(reader):
                ahead = pool.submit(reader.read, stop, stop + chunk_size)
            yield chunk


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
    image_bytes : int
        What one image takes on its way, see `bytes_per_image`.
    """

    def __init__(self, network: keras.Model, chunk_size: int, image_bytes: int) -> None:
        self.network = network
        self.chunk_size = chunk_size
        self.image_bytes = image_bytes
        self.backoffs = 0
        self.on_host = not tf.config.list_logical_devices("GPU")
        self.forward = self._compile()

    def warm_up(self) -> None:
        """Compile, and find out which chunk fits.

        Raises
        ------
        EvaluationError
            If memory does not suffice for a single image.
        """
        while self._try(np.zeros((1, *self.network.input_shape[1:]), np.uint8)) is None:
            pass

    def run(self, reader: SplitReader) -> Iterator[Chunk]:
        """Yield the whole set in order, read chunk by chunk.

        Raises
        ------
        EvaluationError
            If memory does not suffice for a single image.
        """
        start = 0
        for images, labels in read_ahead(reader, self.chunk_size):
            done = 0
            while done < len(labels):  # in several parts, once the chunk had to be halved
                part = slice(done, done + self.chunk_size)
                logits = self._try(images[part])
                if logits is not None:
                    yield Chunk(start + done, labels[part], logits)
                    done += len(logits)
            start += done

    def _try(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return logits of at most a chunk of images, or None if the chunk had to be halved."""
        try:
            if self.on_host:
                # Fails cleanly here, where some of TensorFlow's CPU kernels would crash.
                np.empty(self.chunk_size * self.image_bytes, np.uint8)
            logits: NDArray[np.float32] = self.forward(self._pad(images)).numpy()
        except (tf.errors.ResourceExhaustedError, tf.errors.AbortedError, MemoryError) as error:
            if isinstance(error, tf.errors.AbortedError) and ONEDNN_OUT_OF_MEMORY not in str(error):
                raise
            self._halve(error)
            return None
        return logits[: len(images)]

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
    chunk_size: int
    backoffs: int


def evaluate(
    loaded: model.LoadedModel,
    seed: int,
    reader: SplitReader,
    chunk_size: int,
    predictions: IO[str],
    mistakes: IO[str],
    progress: Progress,
) -> Evaluated:
    """Measure a model on a whole test set.

    Parameters
    ----------
    loaded : model.LoadedModel
    seed : int
        That it was trained with.
    reader : SplitReader
        Of the test split.
    chunk_size : int
        Images at once.
    predictions, mistakes : text file
        Take a CSV row under `COLUMNS`, the one for each image, the other for those that are
        classified wrongly.
    progress : Progress
        Advanced by images.
    """
    totals = Totals(loaded.description.classes)
    forward = ChunkedForward(loaded.network, chunk_size, bytes_per_image(loaded))
    memory = PeakMemory()
    forward.warm_up()
    begin = time.perf_counter()
    for start, labels, logits in forward.run(reader):
        predicted, confidences = totals.add(logits, labels)
        indices = range(start, start + len(labels))
        columns = (array.tolist() for array in (labels, predicted, confidences))
        for index, label, prediction, confidence in zip(indices, *columns, strict=True):
            row = f"{seed},{index},{label},{prediction},{confidence:.6f}\n"
            predictions.write(row)
            if label != prediction:
                mistakes.write(row)
        progress.advance(len(labels), f"{totals.errors} errors")
    seconds = time.perf_counter() - begin
    return Evaluated(totals, seconds, memory.peak_mb(), forward.chunk_size, forward.backoffs)


def summarise(evaluations: Mapping[int, Evaluated], precision: str) -> dict[str, Any]:
    """Return the metrics over seeds; speed and memory are measurements and vary from run to run."""
    each = evaluations.values()
    by_chance = [str(seed) for seed, one in evaluations.items() if one.totals.is_chance]
    warning = f"no better than chance with seed {', '.join(by_chance)}"
    return {
        **({"warning": warning} if by_chance else {}),
        **over_seeds({seed: one.totals.metrics() for seed, one in evaluations.items()}),
        "evaluation": {
            "precision": precision,
            "chunk_size": min(one.chunk_size for one in each),
            "backoffs": sum(one.backoffs for one in each),
            "peak_memory_mb": round(max(one.peak_memory_mb for one in each), 1),
            "images_per_second": round(
                sum(one.totals.n for one in each) / sum(one.seconds for one in each), 1
            ),
        },
    }


def reliability(evaluations: Mapping[int, Evaluated]) -> str:
    """Return the reliability diagrams as CSV: a row for each seed and bin of confidence."""
    rows = [
        (seed, f"{confidence:.6f}", f"{accuracy:.6f}", images)
        for seed, evaluated in evaluations.items()
        for confidence, accuracy, images in evaluated.totals.reliability()
    ]
    lines = [("seed", "confidence", "accuracy", "images"), *rows]
    return "".join(",".join(map(str, line)) + "\n" for line in lines)


def load_for(reader: SplitReader, path: Path, precision: str) -> model.LoadedModel:
    """Load a model, and refuse it if it takes images of another size.

    Raises
    ------
    EvaluationError
        If it does.
    """
    loaded = model.load(path, precision)
    if tuple(loaded.description.image_shape) != reader.image_shape:
        raise EvaluationError(
            f"{path}: takes images of {tuple(loaded.description.image_shape)}, the test images "
            f"are {reader.image_shape}; train it again on this data set"
        )
    return loaded


def main(dataset: str, variant: str) -> None:
    """Evaluate `variant`, trained on `dataset`, and write predictions and metrics."""
    params = Params()
    settings: Evaluate = params.get("evaluate", Evaluate)
    seeds = model.trained_seeds(paths.models(dataset, variant))
    evaluations = {}
    with SplitReader(paths.prepared(dataset, "test")) as reader:
        precision = find_device().precision(settings.precision)
        with (
            Progress(
                f"evaluate {dataset}/{variant}",
                len(reader) * len(seeds),
                "images",
                rate_unit="images",
            ) as progress,
            whole_file(paths.predictions(dataset, variant), "w") as predictions,
            whole_file(paths.mistakes(dataset, variant), "w") as mistakes,
        ):
            for table in (predictions, mistakes):
                table.write(",".join(COLUMNS) + "\n")
            for seed in seeds:
                loaded = load_for(reader, paths.model(dataset, variant, seed), precision)
                chunk_size = min(
                    len(reader),
                    choose_chunk_size(loaded, settings.memory_budget_mb)
                    if settings.chunk_size == "auto"
                    else settings.chunk_size,
                )
                evaluations[seed] = evaluate(
                    loaded, seed, reader, chunk_size, predictions, mistakes, progress
                )
    metrics = summarise(evaluations, precision)
    write_text(paths.reliability(dataset, variant), reliability(evaluations))
    write_json(paths.metrics(dataset, variant), metrics)
    print(f"{dataset}/{variant}: {metrics}")
    if "warning" in metrics:
        print(f"warning: {dataset}/{variant}: {metrics['warning']}")
    require_unchanged(params)


if __name__ == "__main__":
    run_stage(main, "dataset", "variant")
