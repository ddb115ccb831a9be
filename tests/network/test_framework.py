from tests.helpers import run_python


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


def test_settings_are_made_before_tensorflow_reads_them() -> None:
    """Keras runs on TensorFlow, and TensorFlow uses oneDNN."""
    code = """
from pipeline.network.framework import keras, tf
from tensorflow.python.util import _pywrap_util_port
print(keras.backend.backend(), _pywrap_util_port.IsMklEnabled())
"""
    assert run_python(code) == "tensorflow True\n"
