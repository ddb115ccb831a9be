"""TensorFlow and Keras, imported in half of the usual time.

Keras imports scikit-learn, pandas and SciPy if they are installed, and training uses none of them.
Of the million objects that the imports make, nearly all stay, and Python's cyclic garbage collector
would visit them again and again to find that out.
"""

import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

UNUSED = ("pandas", "scipy", "sklearn")


@contextmanager
def absent(*packages: str) -> Iterator[None]:
    """Let imports of packages fail as if they were not installed, unless already imported."""
    hidden = [name for name in packages if name not in sys.modules]
    sys.modules.update(dict.fromkeys(hidden))  # type: ignore[arg-type]  # None: an ImportError
    try:
        yield
    finally:
        for name in hidden:
            del sys.modules[name]


@contextmanager
def uncollected() -> Iterator[None]:
    """Let the garbage collector wait, and then never visit what was made."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()


with absent(*UNUSED), uncollected():
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
