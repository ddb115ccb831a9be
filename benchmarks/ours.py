"""The project's own training step and chunked inference, as a contender."""

import sys
from typing import Any

from benchmarks.contender import Contender, Work, matrix_products, random_images, serve
from benchmarks.throughput import read_variant
from pipeline.core.params import Params
from pipeline.datasets.splits import Split
from pipeline.network.build import LoadedModel, build, build_for_inference
from pipeline.network.chunks import Evaluate
from pipeline.network.device import find_device
from pipeline.network.framework import keras, tf
from pipeline.network.inference import choose_chunk_size, forward_of
from pipeline.network.layers import Precision
from pipeline.network.parts import Layout, lay_out, use_cores
from pipeline.training.batches import batches, divide
from pipeline.training.learner import Learner


def training(network: keras.Model, request: dict[str, Any], layout: Layout) -> Work:
    """Return training as the train stage does it: gather batches of bytes, make steps."""
    data = Split(*random_images(request))
    batch_size: int = request["batch_size"]
    learner = Learner(network, batch_size, parts=layout.parts)

    def work(steps: int) -> int:
        blocks = divide(1, steps, layout.steps, [steps])
        for block, batch in zip(blocks, batches(data, batch_size, 0, blocks), strict=True):
            learner.learn(*batch, [1e-4] * len(block))
        learner.running.take()
        return steps * batch_size

    return work


def inference(loaded: LoadedModel, request: dict[str, Any]) -> Work:
    """Return inference as the evaluate stage does it, in chunks that fit the memory budget."""
    images, _ = random_images(request)
    settings: Evaluate = Params().get("evaluate", Evaluate)
    size = choose_chunk_size(loaded, settings, len(images))
    forward = forward_of(loaded, size).forward

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
    layout = lay_out(description, request["batch_size"], find_device())
    use_cores(layout.parts)
    if request["task"] == "train":
        network = build(description, precision=policy)
        work = training(network, request, layout)
    else:
        loaded = build_for_inference(description, policy)
        network, work = loaded.network, inference(loaded, request)
    dtype = keras.DTypePolicy(policy).compute_dtype

    def multiply(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
        # In as many parts as the network, so that this too takes all cores.
        return tf.concat([part @ second for part in tf.split(first, layout.parts)], 0)

    return Contender(
        parameters=network.count_params(),
        versions={"tensorflow": tf.__version__, "keras": keras.__version__, "precision": policy},
        work=work,
        multiply=matrix_products(lambda matrix: tf.cast(matrix, dtype), tf.function(multiply)),
    )


if __name__ == "__main__":
    serve(lambda request: make(request, sys.argv[1]))  # type: ignore[arg-type]
