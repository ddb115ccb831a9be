"""A model as TensorFlow's SavedModel, which needs none of this project's code to run."""

import shutil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.network.build import LoadedModel
from pipeline.network.framework import tf


def save_saved_model(folder: Path, loaded: LoadedModel) -> None:
    """Write a model to `folder`, which must not be there yet.

    Its signature ``serving_default`` takes uint8 ``images`` (n, height, width, channels), and
    returns float32 ``logits`` and ``probabilities`` (n, classes).
    """
    network, description = loaded
    module = tf.Module(name="model")
    module.variables_of_the_network = network.variables

    def answer(images: tf.Tensor) -> dict[str, tf.Tensor]:
        logits = network(images, training=False)
        return {"logits": logits, "probabilities": tf.nn.softmax(logits / description.temperature)}

    images = tf.TensorSpec((None, *description.image_shape), tf.uint8, name="images")
    module.answer = tf.function(answer, input_signature=[images])
    tf.saved_model.save(module, str(folder), signatures={"serving_default": module.answer})
    # A random number that identifies this very save; without it equal models have equal bytes.
    (folder / "fingerprint.pb").unlink(missing_ok=True)
    shutil.rmtree(folder / "assets", ignore_errors=True)  # there are none


class SavedModel:
    """Runs what a folder holds."""

    def __init__(self, folder: Path) -> None:
        self.model = tf.saved_model.load(str(folder))
        self.signature = self.model.signatures["serving_default"]

    def logits(self, images: NDArray[np.uint8]) -> NDArray[np.float32]:
        """Return the logits (n, classes) of images (n, height, width, channels)."""
        answer: NDArray[np.float32] = self.signature(images=tf.constant(images))["logits"].numpy()
        return answer
