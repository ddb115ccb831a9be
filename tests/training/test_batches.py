import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.training.batches import BatchOrder


@given(
    images=st.integers(1, 60), batch_size=st.integers(1, 60), batches=st.integers(1, 20),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_each_epoch_is_a_permutation(images: int, batch_size: int, batches: int, seed: int) -> None:
    """Batches end to end are whole permutations: no image is dropped or drawn twice in an epoch."""
    order = BatchOrder(images, seed)
    drawn = [order.next_batch(batch_size) for _ in range(batches)]
    assert all(len(batch) == batch_size for batch in drawn)
    stream = np.concatenate(drawn)
    for start in range(0, len(stream), images):
        epoch = stream[start : start + images]
        if len(epoch) == images:
            assert sorted(epoch) == list(range(images))
        else:
            assert len(set(epoch)) == len(epoch)


def test_a_batch_may_span_two_epochs() -> None:
    """If fewer images than a batch remain, the batch is filled from the start of the next epoch."""
    order = BatchOrder(10, seed=0)
    first, second = order.next_batch(7), order.next_batch(7)
    assert set(first) | set(second[:3]) == set(range(10))
    third = order.next_batch(6)
    assert set(second[3:]) | set(third) == set(range(10))


def test_each_epoch_is_shuffled() -> None:
    """Two epochs have different orders, and the first one is shuffled too."""
    order = BatchOrder(100, seed=0)
    first, second = order.next_batch(100), order.next_batch(100)
    assert not np.array_equal(first, second)
    assert not np.array_equal(first, np.arange(100))


def test_the_seed_alone_decides_the_order() -> None:
    """The same seed gives the same batches, and another seed others."""
    batches = [BatchOrder(50, seed).next_batch(50).tolist() for seed in (3, 3, 4)]
    assert batches[0] == batches[1] != batches[2]
