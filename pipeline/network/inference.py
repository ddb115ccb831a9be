"""A whole test set through a network, in chunks of bounded memory."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.core.errors import EvaluationError
from pipeline.datasets.splits import Split, SplitReader
from pipeline.network import storage
from pipeline.network.build import LoadedModel
from pipeline.network.chunks import Evaluate, bytes_per_image, largest_chunk
from pipeline.network.device import find_device
from pipeline.network.framework import keras, tf
from pipeline.network.parts import count_parts, forward_in_parts

# oneDNN's kernels report running out of memory as an AbortedError; dnnl_out_of_memory is 1.
ONEDNN_OUT_OF_MEMORY = "Status: 1,"


class Chunk(NamedTuple):
    """The logits of one part of the test set."""

    start: int
    labels: NDArray[np.uint8]
    logits: NDArray[np.float32]


def load_for(reader: SplitReader, path: Path, precision: str) -> LoadedModel:
    """Return the model in a file, for the images of a split.

    Raises
    ------
    ModelError
        If it cannot be read.
    EvaluationError
        If it takes images of another shape.
    """
    loaded = storage.load(path, precision)
    expected = tuple(loaded.description.image_shape)
    if expected != reader.image_shape:
        raise EvaluationError(
            f"{path}: expects images of {expected}, the test images are {reader.image_shape}; "
            "train it again on this data set"
        )
    return loaded


def choose_chunk_size(loaded: LoadedModel, settings: Evaluate, images: int) -> int:
    """Return how many of a test set's images to put in a chunk.

    Raises
    ------
    EvaluationError
        If the memory budget does not hold one image.
    """
    if settings.chunk_size == "auto":
        return min(images, largest_chunk(memory_per_image(loaded), settings.memory_budget_mb))
    return min(images, settings.chunk_size)


def forward_of(loaded: LoadedModel, chunk_size: int) -> "ChunkedForward":
    """Return what passes chunks through a model, as fits it and this device."""
    parts = count_parts(loaded.description, find_device())
    return ChunkedForward(loaded.network, chunk_size, memory_per_image(loaded), parts)


def memory_per_image(loaded: LoadedModel) -> int:
    """Return the memory that one image takes on its way through a model, in bytes."""
    network, description = loaded
    height, width, channels = description.image_shape
    side = description.network.input_size
    pixels = side**2 * channels if side else height * width * channels
    value_bytes: int = tf.as_dtype(network.weights[0].dtype).size  # weights are as wide as values
    return bytes_per_image(pixels, description.place_layers(), value_bytes)


def read_ahead(reader: SplitReader, chunk_size: int) -> Iterator[Split]:
    """Yield a split in chunks, reading each one while the previous one is processed."""
    with ThreadPoolExecutor(1) as pool:
        ahead = pool.submit(reader.read, 0, chunk_size)
        for stop in range(chunk_size, len(reader) + chunk_size, chunk_size):
            chunk = ahead.result()
            if stop < len(reader):
                ahead = pool.submit(reader.read, stop, stop + chunk_size)
            yield chunk


class ChunkedForward:
    """Passes a test set through a network in chunks of one compiled shape.

    The last chunk is padded, and the padding's results are dropped. When memory runs out, the chunk
    size is halved and the same images are tried again.

    Parameters
    ----------
    network : keras.Model
        From uint8 images to float32 logits.
    chunk_size : int
        Images at once; halved when memory runs out.
    image_bytes : int
        Memory for one image, from `bytes_per_image`.
    parts : int
        In how many parts to compute a chunk, if it can be divided by them.
    """

    def __init__(
        self, network: keras.Model, chunk_size: int, image_bytes: int, parts: int = 1
    ) -> None:
        self.network = network
        self.parts = parts
        self.chunk_size = chunk_size
        self.image_bytes = image_bytes
        self.backoffs = 0
        self.on_host = not tf.config.list_logical_devices("GPU")
        self.forward = self._compile()

    def warm_up(self) -> None:
        """Compile, and find a chunk size that fits.

        Raises
        ------
        EvaluationError
            If memory does not suffice for a single image.
        """
        while self._try(np.zeros((1, *self.network.input_shape[1:]), np.uint8)) is None:
            pass

    def run(self, reader: SplitReader) -> Iterator[Chunk]:
        """Yield the logits of the whole set in order, chunk by chunk.

        Raises
        ------
        EvaluationError
            If memory does not suffice for a single image.
        """
        start = 0
        for images, labels in read_ahead(reader, self.chunk_size):
            done = 0
            while done < len(labels):  # in several parts once the chunk size was halved
                part = slice(done, done + self.chunk_size)
                logits = self._try(images[part])
                if logits is not None:
                    yield Chunk(start + done, labels[part], logits)
                    done += len(logits)
            start += done

    def _try(self, images: NDArray[np.uint8]) -> NDArray[np.float32] | None:
        """Return logits of at most a chunk of images, or None if the chunk size was halved."""
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
            return forward_in_parts(self.network, images, self.parts)

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
        print(f"out of memory: continuing with chunks of {self.chunk_size:,} images", flush=True)
