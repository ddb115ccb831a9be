"""The handwritten digits that scikit-learn includes, in MNIST's layout."""

from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, NonNegativeInt

from pipeline.core.params import Section

DIGIT_BOX = 20  # in MNIST the digit fills 20×20 in the middle of 28×28
DIGIT_SIZE = 28


class DigitsSource(Section):
    """The UCI handwritten digits, split into training and test set."""

    source: Literal["scikit-learn digits"]
    test_fraction: Annotated[float, Field(gt=0, lt=1)]
    seed: NonNegativeInt


def make_digits(source: DigitsSource) -> dict[str, NDArray[np.uint8]]:
    """Return scikit-learn's 1,797 digits in MNIST's layout, split into training and test set.

    Each 8×8 image of 0…16 is enlarged to a 20×20 box in the middle of 28×28 pixels of 0…255.
    Source: E. Alpaydin and C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine
    Learning Repository (1998), https://doi.org/10.24432/C50P49.

    Returns
    -------
    dict
        For each of `paths.ROLES` images (n, 28, 28) or labels (n,), as uint8.
    """
    from scipy.ndimage import zoom
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    enlarge = DIGIT_BOX / digits.images.shape[1]
    # Cubic interpolation, as smooth as a pen's stroke, overshoots a little: hence the clipping.
    boxes = zoom(digits.images / 16, (1, enlarge, enlarge), order=3).clip(0, 1)  # (1797, 20, 20)
    margin = (DIGIT_SIZE - DIGIT_BOX) // 2
    images = np.pad(np.rint(boxes * 255), ((0, 0), (margin, margin), (margin, margin)))
    split = train_test_split(
        images.astype(np.uint8),
        digits.target.astype(np.uint8),
        test_size=source.test_fraction,
        random_state=source.seed,
        stratify=digits.target,
    )
    train_images, test_images, train_labels, test_labels = split
    return {
        "train_images": train_images,
        "train_labels": train_labels,
        "test_images": test_images,
        "test_labels": test_labels,
    }
