"""The batches of a training, in the order of the article's ``next_batch``."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from pipeline.datasets.splits import Split
from pipeline.training.augmentation import augment
from pipeline.training.recipe import Augmentation


class BatchOrder:
    """Draws batches endlessly, in order, from a shuffled set.

    The set is shuffled before the first batch. When fewer images than a batch remain, they are
    taken, the whole set is reshuffled, and the batch is filled from the head of the new order: no
    image is dropped, and a batch may span two epochs.

    Parameters
    ----------
    images : int
        The number of images.
    seed : int
    """

    def __init__(self, images: int, seed: int) -> None:
        self.images = images
        self.random = np.random.Generator(np.random.PCG64(seed))
        self.order = self.random.permutation(images)
        self.position = 0

    def next_batch(self, batch_size: int) -> NDArray[np.int64]:
        """Return the indices of the next `batch_size` images, shape (batch_size,)."""
        parts = []
        missing = batch_size
        while missing:
            if self.position == self.images:
                self.order = self.random.permutation(self.images)
                self.position = 0
            part = self.order[self.position : self.position + missing]
            self.position += len(part)
            missing -= len(part)
            parts.append(part)
        return np.concatenate(parts)


def batches(
    split: Split,
    batch_size: int,
    seed: int,
    blocks: Sequence[range],
    augmentation: Augmentation | None = None,
) -> Iterator[Split]:
    """Yield the batches of each block of steps, made while the block before is trained on.

    Parameters
    ----------
    split : Split
    batch_size : int
    seed : int
        A batch follows from the seed and its step alone.
    blocks : sequence of range
        Steps, counted from 1; each block begins where the one before ends.
    augmentation : Augmentation, optional

    Yields
    ------
    Split
        Images (steps, batch_size, height, width, channels) and labels (steps, batch_size).
    """
    order = BatchOrder(len(split.labels), seed)
    for _ in range(1, blocks[0].start if blocks else 1):
        order.next_batch(batch_size)

    def make(block: range) -> Split:
        chosen = np.stack([order.next_batch(batch_size) for _ in block])
        images = split.images[chosen]
        if augmentation is not None:
            for batch, step in zip(images, block, strict=True):
                batch[:] = augment(batch, augmentation, seed, step)
        return Split(images, split.labels[chosen])

    with ThreadPoolExecutor(1) as pool:
        ahead = [pool.submit(make, block) for block in blocks[:1]]
        for block in blocks[1:]:
            made = ahead.pop().result()
            ahead.append(pool.submit(make, block))
            yield made
        for last in ahead:
            yield last.result()


def divide(first: int, last: int, longest: int, ends: Sequence[int]) -> list[range]:
    """Return the steps `first` to `last` in blocks of at most `longest`.

    A block ends at each multiple of the numbers in `ends`.
    """
    blocks = []
    while first <= last:
        stop = min(first + longest - 1, last, *(-(-first // end) * end for end in ends))
        blocks.append(range(first, stop + 1))
        first = stop + 1
    return blocks
