import json
from pathlib import Path

import pytest

from tests.helpers import run_python

pytestmark = pytest.mark.slow  # each starts TensorFlow in a process of its own


def test_stages_that_compute_import_nothing_unused() -> None:
    """Training and profiling start without scikit-learn, SciPy and pandas; evaluation adds SciPy."""
    code = """
import sys
from pipeline import train, profile
print(sorted({"keras", "tensorflow", "sklearn", "scipy", "pandas"} & set(sys.modules)))
from pipeline import evaluate
print(sorted({"sklearn", "scipy", "pandas"} & set(sys.modules)))
"""
    assert run_python(code).splitlines() == ["['keras', 'tensorflow']", "['scipy']"]


def test_the_garbage_collector_waits_while_the_framework_is_imported() -> None:
    """It visits the million objects of the imports once at most, and is on afterwards."""
    code = """
import gc
from pipeline.core import stage
before = gc.get_stats()[2]["collections"]
from pipeline.network import framework
print(gc.isenabled(), gc.get_stats()[2]["collections"] - before)
"""
    assert run_python(code) in ("True 0\n", "True 1\n")


def test_hidden_packages_can_be_imported_later() -> None:
    """Packages hidden from Keras can be imported after the framework, and before it."""
    later = (
        "from pipeline.network import framework; import pandas, scipy, sklearn; "
        "print(pandas.Series([1]))"
    )
    assert "int64" in run_python(later)
    before = (
        "import pandas, sklearn; from pipeline.network.framework import keras; "
        "print(pandas.Series([1]))"
    )
    assert "int64" in run_python(before)


SETTINGS = """
from pipeline.network.framework import keras, tf
from tensorflow.python.util import _pywrap_util_port
print(keras.backend.backend(), keras.config.image_data_format(), keras.config.floatx())
print(keras.config.epsilon(), _pywrap_util_port.IsMklEnabled())
matrix = tf.random.stateless_uniform((300, 300), (0, 1))
layers = [keras.Input((28, 28, 1)), keras.layers.Conv2D(8, 5, kernel_initializer="ones")]
print(float(tf.reduce_sum(matrix @ matrix)), keras.Sequential(layers).output_shape)
print(tf.function(lambda x: tf.sin(x) @ x)(matrix).numpy().tobytes().hex()[:4096])
"""


def test_what_a_user_set_for_other_programs_changes_nothing(tmp_path: Path) -> None:
    """Neither keras.json nor variables of TensorFlow, XLA and oneDNN change what is computed."""
    expected = run_python(SETTINGS, HOME=str(tmp_path / "empty"))
    assert expected.startswith("tensorflow channels_last float32\n1e-07 True\n")
    home = tmp_path / "home"
    (home / ".keras").mkdir(parents=True)
    theirs = {
        "backend": "jax", "image_data_format": "channels_first", "floatx": "float16",
        "epsilon": 0.1,
    }  # fmt: skip
    (home / ".keras/keras.json").write_text(json.dumps(theirs))
    assert expected == run_python(
        SETTINGS,
        HOME=str(home),
        KERAS_HOME=str(home / ".keras"),
        KERAS_BACKEND="torch",
        TF_ENABLE_ONEDNN_OPTS="0",
        TF_XLA_FLAGS="--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit",
        TF_NUM_INTRAOP_THREADS="1",
        ONEDNN_DEFAULT_FPMATH_MODE="BF16",
        ONEDNN_MAX_CPU_ISA="SSE41",
        XLA_FLAGS="--xla_cpu_enable_fast_math=true",
    )
    assert not (tmp_path / "empty/.keras").exists()
