"""The variant as a plain Keras script: ``compile``, ``fit`` and ``predict``.

It does not import the pipeline, which would change TensorFlow's settings. The layers are the
article's: ReLU, then the pool, then ``tf.nn.lrn``.
"""

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.contender import INFERENCE_BATCH, Contender, matrix_products, random_images, serve


def layers(row: dict[str, Any]) -> list[keras.layers.Layer]:
    """Return the Keras layers for a layer of params.yaml."""
    match row["type"]:
        case "conv":
            settings = [row[name] for name in ("filters", "kernel", "stride", "padding")]
            return [keras.layers.Conv2D(*settings, activation=row["activation"])]
        case "max_pool":
            return [keras.layers.MaxPooling2D(row["size"], row["stride"], row["padding"])]
        case "lrn":
            settings = [row[name] for name in ("depth_radius", "bias", "alpha", "beta")]
            return [keras.layers.Lambda(lambda x: tf.nn.lrn(x, *settings))]
        case "dropout":
            return [keras.layers.Dropout(row["rate"])]
        case "dense":
            dense = keras.layers.Dense(row["units"], activation=row["activation"])
            return [keras.layers.Flatten(), dense]
    raise ValueError(f"no Keras layer for {row}")


def make(request: dict[str, Any]) -> Contender:
    """Return the variant, built and compiled."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input(request["image_shape"])])
    for row in request["layers"]:
        for layer in layers(row):
            network.add(layer)
    network.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    images, labels = random_images(request)
    scaled = (images / 255).astype(np.float32)
    batch_size: int = request["batch_size"]

    def passes(batches: int, size: int) -> Iterator[slice]:
        """Yield slices of the images that add up to that many batches."""
        per_pass = len(scaled) // size
        for count in [per_pass] * (batches // per_pass) + [batches % per_pass]:
            if count:
                yield slice(count * size)

    def fit(steps: int) -> int:
        for part in passes(steps, batch_size):
            network.fit(scaled[part], labels[part], batch_size, verbose=0)
        return steps * batch_size

    def predict(batches: int) -> int:
        for part in passes(batches, INFERENCE_BATCH):
            network.predict(scaled[part], INFERENCE_BATCH, verbose=0)
        return batches * INFERENCE_BATCH

    work = fit if request["task"] == "train" else predict
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return Contender(network.count_params(), versions, work, matrix_products(tf.constant))


if __name__ == "__main__":
    serve(make)
