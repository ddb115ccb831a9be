"""The project's own training step and chunked inference, as a contender."""

import sys
from typing import Any

from benchmarks.contender import Contender, Work, matrix_products, random_images, serve
from benchmarks.throughput import read_variant
from pipeline.core.params import Params
from pipeline.network.build import LoadedModel, build, build_for_inference
from pipeline.network.chunks import Evaluate
from pipeline.network.device import find_device
from pipeline.network.framework import keras, tf
from pipeline.network.inference import ChunkedForward, choose_chunk_size, memory_per_image
from pipeline.network.layers import Precision
from pipeline.training.batches import BatchOrder
from pipeline.training.learner import Learner


def training(network: keras.Model, request: dict[str, Any]) -> Work:
    """Return training as the train stage does it: gather a batch of bytes, make a step."""
    images, labels = random_images(request)
    batch_size: int = request["batch_size"]
    learner = Learner(network, batch_size)
    order = BatchOrder(len(labels), 0)

    def work(steps: int) -> int:
        for _ in range(steps):
            batch = order.next_batch(batch_size)
            learner.learn(images[batch], labels[batch], 1e-4)
        learner.running.take()
        return steps * batch_size

    return work


def inference(loaded: LoadedModel, request: dict[str, Any]) -> Work:
    """Return inference as the evaluate stage does it, in chunks that fit the memory budget."""
    images, _ = random_images(request)
    settings: Evaluate = Params().get("evaluate", Evaluate)
    size = choose_chunk_size(loaded, settings, len(images))
    forward = ChunkedForward(loaded.network, size, memory_per_image(loaded)).forward

    def work(chunks: int) -> int:
        for number in range(chunks):
            start = number * size % (len(images) - size + 1)
            forward(images[start : start + size]).numpy()
        return chunks * size

    return work


def make(request: dict[str, Any], precision: Precision) -> Contender:
    """Return the variant, built as the stages build it."""
    policy = find_device().precision(precision)
    tf.config.experimental.enable_op_determinism()
    _, description = read_variant(request["variant"])
    if request["task"] == "train":
        network = build(description, precision=policy)
        work = training(network, request)
    else:
        loaded = build_for_inference(description, policy)
        network, work = loaded.network, inference(loaded, request)
    dtype = keras.DTypePolicy(policy).compute_dtype
    return Contender(
        parameters=network.count_params(),
        versions={"tensorflow": tf.__version__, "keras": keras.__version__, "precision": policy},
        work=work,
        multiply=matrix_products(lambda matrix: tf.cast(matrix, dtype), tf.function(tf.matmul)),
    )


if __name__ == "__main__":
    serve(lambda request: make(request, sys.argv[1]))  # type: ignore[arg-type]
