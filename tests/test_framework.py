from tests.conftest import run_python


def test_stages_that_compute_import_nothing_that_they_do_not_use() -> None:
    """Training, evaluation and footprint start without scikit-learn, SciPy and pandas."""
    code = """
import sys
from pipeline import evaluate, footprint, train
print(sorted({"keras", "tensorflow", "sklearn", "scipy", "pandas"} & set(sys.modules)))
"""
    assert run_python(code) == "['keras', 'tensorflow']\n"


def test_what_was_left_out_can_be_imported_later() -> None:
    """After the framework, and before it, the packages that it hides are there as ever."""
    later = (
        "from pipeline import framework; import pandas, scipy, sklearn; print(pandas.Series([1]))"
    )
    assert "int64" in run_python(later)
    before = (
        "import pandas, sklearn; from pipeline.framework import keras; print(pandas.Series([1]))"
    )
    assert "int64" in run_python(before)


def test_settings_are_made_before_tensorflow_reads_them() -> None:
    """Keras runs on TensorFlow, and TensorFlow uses oneDNN."""
    code = """
from pipeline.framework import keras, tf
from tensorflow.python.util import _pywrap_util_port
print(keras.backend.backend(), _pywrap_util_port.IsMklEnabled())
"""
    assert run_python(code) == "tensorflow True\n"
