import json
from pathlib import Path

import numpy as np
import pytest
from scipy.special import softmax

from pipeline.exporting.saved_model import SavedModel, save_saved_model
from tests.exporting.test_onnx_model import AFFINE, DENSE, LRN, conv, initial, pool, random_images
from tests.helpers import run_python
from tests.network.helpers import describe, network

pytestmark = pytest.mark.slow  # TensorFlow takes seconds to save a model

EVERY_LAYER = describe(
    network(
        conv(kernel=4, stride=2), pool("max_pool", 3, 2, "valid"), LRN,
        conv(activation="linear", padding="valid"), AFFINE,
        pool("average_pool", 2, 2, "same"), {"type": "dropout", "rate": 0.5},
        DENSE | {"activation": "tanh"}, input_size=24,
    ),
    (13, 17, 2), 4,
).model_copy(update={"temperature": 2.5})  # fmt: skip

# Without this project on the path: what anyone with TensorFlow does.
ONLY_TENSORFLOW = """
import json, sys
import numpy as np
import tensorflow as tf
model = tf.saved_model.load(sys.argv[1]).signatures["serving_default"]
answer = model(images=tf.constant(np.load(sys.argv[2])))
assert not [name for name in sys.modules if name.partition(".")[0] == "pipeline"]
print(json.dumps({name: value.numpy().tolist() for name, value in answer.items()}))
"""
SAVE = """
import sys
from pathlib import Path
from pipeline.exporting.saved_model import save_saved_model
from tests.exporting.test_onnx_model import initial
from tests.exporting.test_saved_model import EVERY_LAYER
save_saved_model(Path(sys.argv[1]), initial(EVERY_LAYER))
"""


def test_logits_are_the_networks_own(tmp_path: Path) -> None:
    """A SavedModel with each type of layer gives the logits of the network it was made from."""
    loaded = initial(EVERY_LAYER)
    save_saved_model(tmp_path / "model", loaded)
    images = random_images(EVERY_LAYER, 9)
    received = SavedModel(tmp_path / "model").logits(images)
    assert received.dtype == np.float32
    np.testing.assert_allclose(received, loaded.network(images).numpy(), atol=1e-4)


def test_only_tensorflow_is_needed(tmp_path: Path) -> None:
    """A process that imports only TensorFlow gets the logits, and calibrated probabilities."""
    loaded = initial(EVERY_LAYER)
    save_saved_model(tmp_path / "model", loaded)
    images = random_images(EVERY_LAYER, 3)
    np.save(tmp_path / "images.npy", images)
    printed = run_python(
        ONLY_TENSORFLOW, str(tmp_path / "model"), str(tmp_path / "images.npy"), PYTHONPATH=""
    )
    answer = json.loads(printed.splitlines()[-1])
    np.testing.assert_allclose(answer["logits"], loaded.network(images).numpy(), atol=1e-4)
    np.testing.assert_allclose(
        answer["probabilities"], softmax(np.array(answer["logits"]) / 2.5, axis=1), atol=1e-6
    )


def test_two_exports_have_the_same_bytes(tmp_path: Path) -> None:
    """Two exports of a model, in two processes with other hash seeds, have the same bytes."""
    contents = []
    for seed in ("1", "2"):
        folder = tmp_path / seed
        run_python(SAVE, str(folder), PYTHONHASHSEED=seed)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        contents.append({str(path.relative_to(folder)): path.read_bytes() for path in files})
    assert list(contents[0]) == list(contents[1])
    assert [name for name in contents[0] if contents[0][name] != contents[1][name]] == []
