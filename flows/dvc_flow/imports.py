"""Quick imports, for a command whose work is shorter than its start."""

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def importing() -> Iterator[None]:
    """Import what the block imports in two thirds of the time.

    Prefect, pydantic and DVC make a million objects as they load, and nearly all of them stay.
    Python's cyclic garbage collector would visit them again and again to find that out, and once
    more at exit. Here it waits until the block ends, and leaves alone whatever is there by then.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
