import gc

from dvc_flow.imports import importing


def test_the_garbage_collector_waits_and_leaves_alone_what_was_imported() -> None:
    """It is off within the block and on behind it, where it no longer visits what was there."""
    before = gc.get_freeze_count()
    try:
        with importing():
            made = [[each] for each in range(10_000)]
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() >= before + len(made)
    finally:
        gc.unfreeze()
