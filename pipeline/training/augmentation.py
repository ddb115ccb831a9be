"""Augmentation: each image is turned, sheared, stretched and moved, and a square of it cut out.

What happens to an image follows from the seed, the step and its place in the batch alone, so that a
resumed training sees the same images.
"""

import math

import numpy as np
from numpy.typing import NDArray

from pipeline.network.framework import tf
from pipeline.training.recipe import Augmentation


def augment(
    images: NDArray[np.uint8], settings: Augmentation, seed: int, step: int
) -> NDArray[np.uint8]:
    """Return the images of a batch, each changed in its own way.

    Parameters
    ----------
    images : array of uint8, shape (n, height, width, channels)
    settings : Augmentation
    seed, step : int
        What the random numbers follow from.

    Returns
    -------
    array of uint8, shape (n, height, width, channels)
        Interpolated linearly; what comes from outside of an image is 0.

    Notes
    -----
    Source of the cutout, whose centre is any pixel: T. DeVries and G. W. Taylor, Improved
    Regularization of Convolutional Neural Networks with Cutout, 2017.
    """
    height, width = images.shape[1:3]
    random = np.random.Generator(np.random.Philox(key=[seed, step]))
    drawn = random.random((len(images), 8), np.float32)
    moved = tf.raw_ops.ImageProjectiveTransformV3(
        images=tf.cast(images, tf.float32),
        transforms=transforms(settings, 2 * drawn[:, :6] - 1, height, width),
        output_shape=[height, width],
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    ).numpy()
    changed: NDArray[np.uint8] = np.rint(moved).astype(np.uint8)
    if settings.cutout:
        rows, columns = (
            _within(np.floor(centre * side) - settings.cutout // 2, settings.cutout, side)
            for side, centre in ((height, drawn[:, 6]), (width, drawn[:, 7]))
        )
        changed[rows[:, :, None] & columns[:, None, :]] = 0
    return changed


def _within(start: NDArray[np.float32], length: int, side: int) -> NDArray[np.bool_]:
    """Return which pixels of a side lie in each stretch, as bool (n, side)."""
    after = np.arange(side) - start[:, None]
    inside: NDArray[np.bool_] = (after >= 0) & (after < length)
    return inside


def transforms(
    settings: Augmentation, drawn: NDArray[np.float32], height: int, width: int
) -> NDArray[np.float32]:
    """Return where each pixel comes from, as TensorFlow's ImageProjectiveTransformV3 takes it.

    With the centre c of an image, the pixel at p comes from ``R S Z (p - c) + c + t``: the matrices
    of a rotation, a shear along x and a zoom of each axis, and a shift t.

    Parameters
    ----------
    settings : Augmentation
    drawn : array of float32, shape (n, 6)
        Shares of the largest changes, -1…1: rotation, shear, zoom and shift along x and y.
    height, width : int

    Returns
    -------
    array of float32, shape (n, 8)
    """
    turn, lean, zoom_x, zoom_y, shift_x, shift_y = drawn.astype(np.float64).T
    angle, slant = turn * math.radians(settings.rotate), np.tan(lean * math.radians(settings.shear))
    across, down = 1 + zoom_x * settings.zoom, 1 + zoom_y * settings.zoom
    cos, sin = np.cos(angle), np.sin(angle)
    a, b = cos * across, (cos * slant - sin) * down
    c, d = sin * across, (sin * slant + cos) * down
    x, y = (width - 1) / 2, (height - 1) / 2
    nothing = np.zeros_like(a)
    return np.stack(
        [
            a, b, x - a * x - b * y + shift_x * settings.shift * width,
            c, d, y - c * x - d * y + shift_y * settings.shift * height,
            nothing, nothing,
        ],
        axis=1,
    ).astype(np.float32)  # fmt: skip
