"""TensorFlow and Keras, imported without the optional packages that Keras imports if installed.

scikit-learn, pandas and SciPy take a quarter of the time of the imports, and training uses none.
"""

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


with absent(*UNUSED):
    import keras
    import tensorflow as tf

__all__ = ["keras", "tf"]
