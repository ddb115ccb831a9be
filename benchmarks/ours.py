"""The project's own training step and chunked evaluation, as a contender."""

import sys
from typing import Any

from benchmarks.contender import MATRIX_SIDE, Contender, Work, random_images, serve
from benchmarks.throughput import read_variant
from pipeline import model
from pipeline.batches import BatchOrder
from pipeline.device import Precision, find_device
from pipeline.evaluate import ChunkedForward, bytes_per_image, choose_chunk_size
from pipeline.framework import keras, tf
from pipeline.learner import Learner


def training(network: keras.Model, request: dict[str, Any]) -> Work:
    """Return the work of `pipeline.train`: a batch gathered from bytes, and a step."""
    images, labels = random_images(tuple(request["image_shape"]), request["classes"])
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


def inference(loaded: model.LoadedModel, request: dict[str, Any]) -> Work:
    """Return the work of `pipeline.evaluate`: a chunk that fits the memory budget."""
    images, _ = random_images(tuple(request["image_shape"]), request["classes"])
    chunk_size = choose_chunk_size(loaded, request["memory_budget_mb"])
    forward = ChunkedForward(loaded.network, chunk_size, bytes_per_image(loaded)).forward

    def work(chunks: int) -> int:
        for number in range(chunks):
            start = number * chunk_size % (len(images) - chunk_size + 1)
            forward(images[start : start + chunk_size]).numpy()
        return chunks * chunk_size

    return work


def make(request: dict[str, Any], precision: Precision) -> Contender:
    """Build the variant as the stages do."""
    policy = find_device().precision(precision)
    tf.config.experimental.enable_op_determinism()
    _, description = read_variant(request["variant"])
    if request["task"] == "train":
        network = model.build(description, precision=policy)
        work = training(network, request)
    else:
        loaded = model.build_for_inference(description, policy)
        network, work = loaded.network, inference(loaded, request)
    matrix = tf.cast(
        tf.random.stateless_normal((MATRIX_SIDE, MATRIX_SIDE), (0, 0)),
        keras.DTypePolicy(policy).compute_dtype,
    )
    product = tf.function(lambda x: tf.matmul(x, x))

    def multiply(times: int) -> int:
        for _ in range(times):
            result = product(matrix)
        result[0, 0].numpy()  # waits for the last one
        return times * 2 * MATRIX_SIDE**3

    return Contender(
        parameters=network.count_params(),
        versions={"tensorflow": tf.__version__, "keras": keras.__version__, "precision": policy},
        work=work,
        multiply=multiply,
    )


if __name__ == "__main__":
    serve(lambda request: make(request, sys.argv[1]))  # type: ignore[arg-type]
