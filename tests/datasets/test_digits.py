import numpy as np

from pipeline.datasets.digits import DigitsSource, make_digits


def test_digits_have_mnists_layout_and_are_split_by_class() -> None:
    """The digits fill 20×20 in the middle of 28×28 pixels, and each class is split alike."""
    source = DigitsSource(source="scikit-learn digits", test_fraction=0.2, seed=0)
    digits = make_digits(source)
    assert digits["train_images"].shape == (1437, 28, 28)
    assert digits["test_images"].shape == (360, 28, 28)
    assert {array.dtype for array in digits.values()} == {np.dtype(np.uint8)}
    assert digits["train_images"][:, 4:24, 4:24].max() == 255
    frame = digits["train_images"].copy()
    frame[:, 4:24, 4:24] = 0
    assert not frame.any()
    counts = np.bincount(digits["test_labels"])
    assert counts.min() >= 34
    assert counts.max() <= 38


def test_the_seed_alone_decides_the_split() -> None:
    """The same seed gives the same split, and another seed another one."""
    first, again, other = (
        make_digits(DigitsSource(source="scikit-learn digits", test_fraction=0.2, seed=seed))
        for seed in (0, 0, 1)
    )
    for role, array in again.items():
        np.testing.assert_array_equal(array, first[role])
    assert not np.array_equal(other["test_images"], first["test_images"])
