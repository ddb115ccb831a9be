"""The order of the images in training: the article's ``next_batch``."""

import numpy as np
from numpy.typing import NDArray


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
