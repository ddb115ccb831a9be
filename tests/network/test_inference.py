import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipeline.core.errors import EvaluationError
from pipeline.core.params import Params
from pipeline.datasets.splits import SplitReader, save_split
from pipeline.network.build import LoadedModel, build_for_inference
from pipeline.network.chunks import Evaluate
from pipeline.network.inference import (
    ChunkedForward,
    choose_chunk_size,
    memory_per_image,
    read_ahead,
)
from tests.helpers import CLASSES, ROOT, SIDE, make_images, run_python
from tests.network.helpers import describe, loaded, network

N = 60
MANY = 10**9  # images in a test set that any chunk fits into


@pytest.fixture
def reader(tmp_path: Path) -> Any:
    save_split(tmp_path, make_images(N, seed=2))
    with SplitReader(tmp_path) as reader:
        yield reader


@pytest.fixture(scope="module")
def tiny() -> LoadedModel:
    row = network({"type": "conv", "filters": 4, "kernel": 3}, {"type": "dense", "units": 8})
    return build_for_inference(describe(row, (SIDE, SIDE, 1), CLASSES), "float32")


class Greedy(keras.Model):
    """A network that runs out of memory above some number of images."""

    def __init__(self, inner: keras.Model, limit: int) -> None:
        super().__init__()
        self.inner, self.limit = inner, limit

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        shape: tuple[int | None, ...] = self.inner.input_shape
        return shape

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        if images.shape[0] > self.limit:
            raise tf.errors.ResourceExhaustedError(None, None, "OOM when allocating tensor")
        return self.inner(images, training=training)


@pytest.mark.parametrize("chunk_size", [1, 7, 59, 60, 1000])
@pytest.mark.parametrize("parts", [1, 2])
def test_chunks_give_the_logits_of_the_whole(
    tiny: LoadedModel, reader: SplitReader, chunk_size: int, parts: int
) -> None:
    """Chunks of any size, the last one padded, give the logits of the whole set in order."""
    forward = ChunkedForward(tiny.network, chunk_size, memory_per_image(tiny), parts)
    forward.warm_up()
    chunks = list(forward.run(reader))
    assert [chunk.start for chunk in chunks] == list(range(0, N, chunk_size))
    images, labels = reader.read(0, N)
    np.testing.assert_array_equal(np.concatenate([each.labels for each in chunks]), labels)
    logits = np.concatenate([each.logits for each in chunks])
    np.testing.assert_allclose(logits, tiny.network(images), atol=1e-5)
    assert forward.backoffs == 0


def test_a_split_is_read_once_and_in_order(reader: SplitReader) -> None:
    """Reading ahead yields each image once, in order."""
    pieces = list(read_ahead(reader, 25))
    assert [len(piece.labels) for piece in pieces] == [25, 25, 10]
    images = np.concatenate([piece.images for piece in pieces])
    np.testing.assert_array_equal(images, reader.read(0, N).images)


def test_out_of_memory_halves_the_chunk_and_loses_no_image(
    tiny: LoadedModel, reader: SplitReader
) -> None:
    """When memory runs out, the chunk is halved until it fits, and no image is lost."""
    forward = ChunkedForward(Greedy(tiny.network, 20), 60, 1)
    logits = np.concatenate([chunk.logits for chunk in forward.run(reader)])
    assert (forward.chunk_size, forward.backoffs) == (15, 2)
    np.testing.assert_allclose(logits, tiny.network(reader.read(0, N).images), atol=1e-5)


def test_warming_up_finds_the_size_that_fits(tiny: LoadedModel) -> None:
    """A chunk that does not fit is halved while warming up, before the first image is read."""
    forward = ChunkedForward(Greedy(tiny.network, 20), 60, 1)
    forward.warm_up()
    assert forward.chunk_size == 15


def test_too_little_memory_for_one_image_is_an_error(tiny: LoadedModel) -> None:
    """If memory does not suffice for a single image, the error suggests a fix."""
    with pytest.raises(EvaluationError, match="does not suffice for a single image; free some"):
        ChunkedForward(Greedy(tiny.network, 0), 60, 1).warm_up()


def test_memory_that_the_host_refuses_halves_the_chunk(tiny: LoadedModel) -> None:
    """A chunk that the host cannot hold is halved before TensorFlow sees it."""
    forward = ChunkedForward(tiny.network, 64, 2**53)
    with pytest.raises(EvaluationError, match="does not suffice"):
        forward.warm_up()
    assert forward.backoffs == 6


class Aborting(Greedy):
    """A network whose kernels abort with a message."""

    def __init__(self, inner: keras.Model, message: str) -> None:
        super().__init__(inner, 0)
        self.message = message

    def __call__(self, images: tf.Tensor, training: bool = False) -> tf.Tensor:
        raise tf.errors.AbortedError(None, None, self.message)


def test_other_aborts_are_not_mistaken_for_memory(tiny: LoadedModel) -> None:
    """Of TensorFlow's AbortedErrors, only oneDNN's out-of-memory status halves the chunk."""
    with pytest.raises(tf.errors.AbortedError):
        ChunkedForward(Aborting(tiny.network, "Operation was aborted"), 4, 1).warm_up()
    with pytest.raises(EvaluationError):
        ChunkedForward(Aborting(tiny.network, "Status: 1, message: x"), 4, 1).warm_up()


def auto(budget_mb: float) -> Evaluate:
    return Evaluate(memory_budget_mb=budget_mb, chunk_size="auto", precision="auto")


def test_the_chunk_follows_the_budget_and_the_layers() -> None:
    """A larger budget allows more images, and larger layers fewer."""
    small, large = loaded("lenet5"), loaded("alexnet_norm")
    assert choose_chunk_size(small, auto(60), MANY) > choose_chunk_size(large, auto(60), MANY)
    assert choose_chunk_size(large, auto(256), MANY) > choose_chunk_size(large, auto(128), MANY) > 1


def test_half_the_bytes_let_twice_as_many_images_through() -> None:
    """An image takes half as much memory in bfloat16, so the chunk is twice as large."""
    full, half = loaded("alexnet_norm"), loaded("alexnet_norm", "mixed_bfloat16")
    assert memory_per_image(full) == 2 * memory_per_image(half)
    assert choose_chunk_size(half, auto(128), MANY) // 2 == choose_chunk_size(full, auto(128), MANY)


def test_resized_images_count_with_their_new_size() -> None:
    """Where the network resizes its images, their size inside the network counts."""
    row = network({"type": "dense", "units": 2}, input_size=100)
    resized = build_for_inference(describe(row), "float32")
    assert memory_per_image(resized) == 4 * (3 * 100 * 100 + 2)


def test_a_chunk_is_at_most_the_test_set(tiny: LoadedModel) -> None:
    """Neither a chosen nor a given chunk is larger than the test set."""
    given = Evaluate(memory_budget_mb=128, chunk_size=50, precision="auto")
    assert choose_chunk_size(tiny, auto(1000), 7) == 7
    assert choose_chunk_size(tiny, given, 7) == 7
    assert choose_chunk_size(tiny, given, 70) == 50


# What TensorFlow frees it keeps for itself, so only a new process shows the memory that it takes.
MEASURE = """
import json, resource, sys
import numpy as np
import psutil
from pathlib import Path
from pipeline.core.params import Params
from pipeline.datasets.splits import Split, SplitReader, split_writer
from pipeline.network.chunks import MB, Evaluate
from pipeline.network.inference import ChunkedForward, choose_chunk_size, memory_per_image
from pipeline.network.memory import PeakMemory
from tests.network.helpers import loaded
from tests.network.test_inference import ALL_AT_ONCE

folder, images, chunk_size, limit_mb = Path(sys.argv[1]), *map(int, sys.argv[2:])
random = np.random.default_rng(0)
with split_writer(folder, images, (28, 28, 1)) as write:
    for _ in range(0, images, 1000):
        write(Split(random.integers(0, 256, (1000, 28, 28, 1), np.uint8), np.zeros(1000, np.uint8)))
model = loaded("alexnet_dropout")
settings = Params().get("evaluate", Evaluate)
with SplitReader(folder) as reader:
    chosen = chunk_size or choose_chunk_size(model, settings, images)
    if limit_mb:
        limit = psutil.Process().memory_info().vms + int(limit_mb * MB)
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    if chunk_size == ALL_AT_ONCE:
        model.network(reader.read(0, images).images)
    memory = PeakMemory()
    forward = ChunkedForward(model.network, chosen, memory_per_image(model))
    forward.warm_up()
    predicted = [int(each) for chunk in forward.run(reader) for each in chunk.logits.argmax(axis=1)]
print(json.dumps([predicted, forward.backoffs, memory.peak_mb()]))
"""
ALL_AT_ONCE = -1  # instead of in chunks
LIMIT_MB = 700  # of address space on top of the loaded model: less than the whole set needs


def measure(
    folder: Path, images: int, chunk_size: int = 0, limit_mb: int = 0
) -> tuple[list[int], int, float]:
    """Return predictions, the number of halvings and the peak memory, from a process of its own."""
    output = run_python(MEASURE, str(folder), str(images), str(chunk_size), str(limit_mb))
    predicted, backoffs, peak_mb = json.loads(output.splitlines()[-1])
    return predicted, backoffs, peak_mb


@pytest.mark.slow
def test_an_address_space_limit_changes_no_prediction(tmp_path: Path) -> None:
    """Under a limit that the whole test set exceeds, every image gets the same prediction."""
    with pytest.raises(AssertionError):
        measure(tmp_path, 8_000, ALL_AT_ONCE, limit_mb=LIMIT_MB)
    free = measure(tmp_path, 8_000)
    limited = measure(tmp_path, 8_000, limit_mb=LIMIT_MB)
    halved = measure(tmp_path, 8_000, chunk_size=8_000, limit_mb=LIMIT_MB)
    assert free[0] == limited[0] == halved[0]
    assert free[1] == limited[1] == 0 < halved[1]


@pytest.mark.slow
def test_memory_does_not_grow_with_the_test_set(tmp_path: Path) -> None:
    """2,000 and 20,000 images stay within the budget, and within 20 MB of each other."""
    peaks = [measure(tmp_path / str(images), images)[2] for images in (2_000, 20_000)]
    budget: float = Params(ROOT / "params.yaml").get("evaluate.memory_budget_mb", float)
    assert max(peaks) < budget
    assert abs(peaks[0] - peaks[1]) < 20
