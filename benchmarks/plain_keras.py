"""The variant as a plain Keras script has it: ``compile``, ``fit`` and ``predict``.

It does not import the pipeline, whose settings of TensorFlow would be its own then. Layers are as
the article has them: ReLU, then the pool, then ``tf.nn.lrn``.
"""

from typing import Any

import keras
import numpy as np
import tensorflow as tf

from benchmarks.contender import (
    INFERENCE_BATCH,
    MATRIX_SIDE,
    Contender,
    Work,
    random_images,
    serve,
)


def layer(row: dict[str, Any]) -> list[keras.layers.Layer]:
    """Return the Keras layers of a row of params.yaml."""
    match row["type"]:
        case "conv":
            return [
                keras.layers.Conv2D(
                    row["filters"],
                    row["kernel"],
                    strides=row["stride"],
                    padding=row["padding"],
                    activation=row["activation"],
                )
            ]
        case "max_pool":
            return [keras.layers.MaxPooling2D(row["size"], row["stride"], row["padding"])]
        case "lrn":
            settings = [row[name] for name in ("depth_radius", "bias", "alpha", "beta")]
            return [keras.layers.Lambda(lambda x: tf.nn.lrn(x, *settings))]
        case "dropout":
            return [keras.layers.Dropout(row["rate"])]
        case "dense":
            return [
                keras.layers.Flatten(),
                keras.layers.Dense(row["units"], activation=row["activation"]),
            ]
    raise ValueError(f"no plain layer for {row}")


def make(request: dict[str, Any]) -> Contender:
    """Build and compile the variant."""
    keras.utils.set_random_seed(0)
    network = keras.Sequential([keras.Input(request["image_shape"])])
    for row in request["layers"]:
        for each in layer(row):
            network.add(each)
    network.compile(
        keras.optimizers.Adam(1e-4),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    images, labels = random_images(tuple(request["image_shape"]), request["classes"])
    scaled = (images / 255).astype(np.float32)
    matrix = tf.random.stateless_normal((MATRIX_SIDE, MATRIX_SIDE), (0, 0))

    def whole_passes(pieces: int, size: int) -> list[slice]:
        """Return slices of the images that make so many batches together."""
        per_pass = len(scaled) // size
        counts = [per_pass] * (pieces // per_pass) + [pieces % per_pass]
        return [slice(count * size) for count in counts if count]

    def fit(steps: int) -> int:
        for part in whole_passes(steps, request["batch_size"]):
            network.fit(scaled[part], labels[part], request["batch_size"], verbose=0)
        return int(steps * request["batch_size"])

    def predict(batches: int) -> int:
        for part in whole_passes(batches, INFERENCE_BATCH):
            network.predict(scaled[part], INFERENCE_BATCH, verbose=0)
        return batches * INFERENCE_BATCH

    def multiply(times: int) -> int:
        for _ in range(times):
            result = tf.matmul(matrix, matrix)
        result[0, 0].numpy()
        return times * 2 * MATRIX_SIDE**3

    work: Work = fit if request["task"] == "train" else predict
    versions = {"tensorflow": tf.__version__, "keras": keras.__version__}
    return Contender(network.count_params(), versions, work, multiply)


if __name__ == "__main__":
    serve(make)
