import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.datasets.splits import Split
from pipeline.training.batches import BatchOrder, batches, divide
from pipeline.training.recipe import Augmentation
from tests.helpers import make_images

SPLIT = make_images(23)
CHANGES = Augmentation(rotate=20, shear=5, zoom=0.2, shift=0.1, cutout=4)


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


def drawn(
    blocks: list[range], augmentation: Augmentation | None = None, seed: int = 3
) -> list[Split]:
    """Return each batch of five images of some blocks of steps."""
    made = list(batches(SPLIT, 5, seed, blocks, augmentation))
    assert [len(images) for images, _ in made] == [len(block) for block in blocks]
    return [Split(*batch) for block in made for batch in zip(*block, strict=True)]


def assert_same(first: list[Split], second: list[Split]) -> None:
    assert len(first) == len(second)
    for one, two in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.images, two.images)
        np.testing.assert_array_equal(one.labels, two.labels)


@pytest.mark.parametrize("augmentation", [None, Augmentation()])
def test_batches_come_in_the_order_that_is_drawn(augmentation: Augmentation | None) -> None:
    """With and without augmentation the batches have the images of the order, with their labels."""
    order = BatchOrder(len(SPLIT.labels), seed=3)
    indices = [order.next_batch(5) for _ in range(12)]
    assert_same(
        drawn([range(1, 4), range(4, 13)], augmentation),
        [Split(SPLIT.images[each], SPLIT.labels[each]) for each in indices],
    )


@pytest.mark.parametrize("augmentation", [None, CHANGES])
@pytest.mark.parametrize(
    "blocks",
    [
        [range(step, step + 1) for step in range(1, 13)],
        [range(1, 13)],
        [range(1, 6), range(6, 7), range(7, 13)],
    ],
)
def test_blocks_change_no_batch(blocks: list[range], augmentation: Augmentation | None) -> None:
    """A batch is the same whatever block its step is in."""
    assert_same(drawn(blocks, augmentation), drawn([range(1, 8), range(8, 13)], augmentation))


@pytest.mark.parametrize("augmentation", [None, CHANGES])
@pytest.mark.parametrize("first", [2, 5, 12])
def test_a_later_step_is_what_it_would_have_been(
    first: int, augmentation: Augmentation | None
) -> None:
    """Begun at a later step, the batches are those that would have come from the start."""
    whole = drawn([range(1, 13)], augmentation)
    assert_same(drawn([range(first, 13)], augmentation), whole[first - 1 :])


def test_each_step_is_augmented_in_its_own_way() -> None:
    """The same image is changed differently in another epoch, and with another seed."""
    epochs = [
        block.images[0] for block in batches(SPLIT, 23, 0, [range(1, 2), range(2, 3)], CHANGES)
    ]
    seen = {image.tobytes() for images in epochs for image in images}
    assert len(seen) == 46
    first, other = (drawn([range(1, 3)], CHANGES, seed)[0].images for seed in (3, 4))
    assert not np.array_equal(first, other)


def test_augmentation_leaves_the_data_as_they_are() -> None:
    """The images of the split are not changed."""
    before = SPLIT.images.copy()
    drawn([range(1, 13)], CHANGES)
    np.testing.assert_array_equal(SPLIT.images, before)


def test_nothing_is_left_to_draw_after_the_last_step() -> None:
    """A training that is resumed at its end asks for no batch."""
    assert list(batches(SPLIT, 5, 0, [])) == []


def test_a_training_that_stops_leaves_no_thread_waiting() -> None:
    """The batches may be abandoned after any of them."""
    ahead = batches(SPLIT, 5, 0, [range(1, 3), range(3, 5), range(5, 7)], CHANGES)
    assert len(next(ahead).labels) == 2
    ahead.close()  # type: ignore[attr-defined]


@given(
    first=st.integers(1, 50), last=st.integers(0, 60), longest=st.integers(1, 20),
    ends=st.lists(st.integers(1, 30), max_size=3),
)  # fmt: skip
def test_steps_are_divided_where_something_is_due(
    first: int, last: int, longest: int, ends: list[int]
) -> None:
    """Blocks are the steps in order, as long as may be, and end where something is due."""
    blocks = divide(first, last, longest, ends)
    assert [step for block in blocks for step in block] == list(range(first, last + 1))
    for block in blocks:
        assert 1 <= len(block) <= longest
        due = [step for step in block if any(step % end == 0 for end in ends)]
        assert due in ([], [block[-1]])
        assert len(block) == longest or due or block[-1] == last
