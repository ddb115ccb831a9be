import math

import numpy as np
import pytest
import tensorflow as tf
from numpy.typing import NDArray
from scipy.ndimage import affine_transform

from pipeline.training.augmentation import augment, transforms
from pipeline.training.recipe import Augmentation

HEIGHT, WIDTH = 12, 16
NOISE = np.random.default_rng(0).integers(0, 256, (8, HEIGHT, WIDTH, 1), dtype=np.uint8)
EVERYTHING = Augmentation(rotate=15, shear=10, zoom=0.15, shift=0.1, cutout=4)


def move(images: NDArray[np.uint8], settings: Augmentation, *drawn: float) -> NDArray[np.float32]:
    """Return images moved by these shares of the largest changes."""
    height, width = images.shape[1:3]
    moved: NDArray[np.float32] = tf.raw_ops.ImageProjectiveTransformV3(
        images=images.astype(np.float32),
        transforms=transforms(settings, np.array([drawn], np.float32), height, width),
        output_shape=(height, width),
        fill_value=0.0,
        interpolation="BILINEAR",
        fill_mode="CONSTANT",
    ).numpy()
    return moved


def test_nothing_is_changed_if_nothing_is_configured() -> None:
    """Without any change configured the images stay as they are, in colour too."""
    for images in (NOISE, np.repeat(NOISE, 3, axis=3)):
        changed = augment(images, Augmentation(), seed=0, step=1)
        np.testing.assert_array_equal(changed, images)
        assert changed.dtype == np.uint8


@pytest.mark.parametrize(("right", "down"), [(4, 0), (-4, 0), (0, 3), (0, -3), (4, -3)])
def test_a_shift_by_whole_pixels_moves_them(right: int, down: int) -> None:
    """A shift by whole pixels moves them, and zeros come in."""
    settings = Augmentation(shift=0.25)  # of 16 columns and 12 rows: 4 and 3
    shares = right / (WIDTH / 4), down / (HEIGHT / 4)
    moved = move(NOISE, settings, 0, 0, 0, 0, *shares)
    expected = np.zeros_like(NOISE)
    rows, columns = np.arange(HEIGHT) + down, np.arange(WIDTH) + right
    inside = np.ix_((rows >= 0) & (rows < HEIGHT), (columns >= 0) & (columns < WIDTH))
    rolled = np.roll(NOISE, (-down, -right), axis=(1, 2))
    expected[:, inside[0], inside[1]] = rolled[:, inside[0], inside[1]]
    np.testing.assert_allclose(moved, expected, atol=1e-3)


@pytest.mark.parametrize(("share", "turns"), [(1, 1), (-1, -1)])
def test_a_quarter_turn_is_numpys(share: float, turns: int) -> None:
    """A rotation by 90° to either side is NumPy's."""
    square = NOISE[:, :, :HEIGHT]
    moved = move(square, Augmentation(rotate=90), share, 0, 0, 0, 0, 0)
    np.testing.assert_allclose(moved, np.rot90(square, turns, axes=(1, 2)), atol=0.1)


@pytest.mark.parametrize(
    "drawn",
    [
        (0.7, 0, 0, 0, 0, 0),
        (0, 0.8, 0, 0, 0, 0),
        (0, 0, 0.9, 0, 0, 0),
        (0, 0, 0, -0.9, 0, 0),
        (0, 0, 0, 0, 0.33, -0.71),
        (1, 1, 1, 1, 1, 1),
        (-0.4, 0.6, -0.8, 0.3, 0.2, -0.9),
    ],
)
def test_images_are_moved_as_scipy_moves_them(drawn: tuple[float, ...]) -> None:
    """Rotation, shear, zoom and shift about the centre are SciPy's affine transform."""
    settings = Augmentation(rotate=40, shear=20, zoom=0.3, shift=0.2)
    angle, slant = math.radians(40 * drawn[0]), math.tan(math.radians(20 * drawn[1]))
    rotation = [[math.cos(angle), -math.sin(angle)], [math.sin(angle), math.cos(angle)]]
    zoom = np.diag([1 + 0.3 * drawn[2], 1 + 0.3 * drawn[3]])
    of_x_and_y = np.array(rotation) @ [[1, slant], [0, 1]] @ zoom
    matrix = of_x_and_y[::-1, ::-1]  # of rows and columns
    centre = np.array([HEIGHT - 1, WIDTH - 1]) / 2
    shift = 0.2 * np.array([HEIGHT * drawn[5], WIDTH * drawn[4]])
    offset = centre + shift - matrix @ centre
    moved = move(NOISE, settings, *drawn)
    for image, received in zip(NOISE, moved, strict=True):
        expected = affine_transform(
            image[..., 0].astype(float), matrix, offset, order=1, mode="grid-constant"
        )
        np.testing.assert_allclose(received[..., 0], expected, atol=0.05)


def test_changes_reach_their_limits_to_either_side() -> None:
    """Shifts are uniform up to the largest one, to either side, and each axis has its own."""
    dot = np.zeros((3000, 25, 25, 1), np.uint8)
    dot[:, 12, 12] = 255
    moved = augment(dot, Augmentation(shift=0.2), seed=0, step=1)[..., 0].astype(float)
    shifts = np.stack(
        [(moved.sum(axis=axis) @ np.arange(25)) / moved.sum(axis=(1, 2)) - 12 for axis in (2, 1)]
    )
    assert np.abs(shifts).max() <= 5.01
    for axis in shifts:
        assert (axis.min(), axis.max()) == pytest.approx((-5, 5), abs=0.1)
        assert axis.mean() == pytest.approx(0, abs=0.2)
        assert axis.std() == pytest.approx(5 / math.sqrt(3), rel=0.03)
    assert abs(np.corrcoef(shifts)[0, 1]) < 0.05


def test_changes_follow_from_seed_and_step_alone() -> None:
    """The same seed and step give the same bytes, whatever was made before, and others do not."""
    first = augment(NOISE, EVERYTHING, seed=3, step=7)
    np.random.default_rng(3).random(100)
    for other in ((3, 8), (4, 7), (7, 3)):
        assert not np.array_equal(augment(NOISE, EVERYTHING, *other), first)
    np.testing.assert_array_equal(augment(NOISE, EVERYTHING, seed=3, step=7), first)


def test_an_images_change_follows_from_its_place_in_the_batch() -> None:
    """Equal images of a batch are changed differently, and a shorter batch is its beginning."""
    equal = np.repeat(NOISE[:1], 6, axis=0)
    changed = augment(equal, EVERYTHING, seed=0, step=1)
    assert len({image.tobytes() for image in changed}) == 6
    np.testing.assert_array_equal(augment(equal[:4], EVERYTHING, seed=0, step=1), changed[:4])


def test_channels_are_changed_alike() -> None:
    """Each channel of a colour image is changed as the same image without colour is."""
    grey = augment(NOISE, EVERYTHING, seed=0, step=1)
    colour = augment(np.repeat(NOISE, 3, axis=3), EVERYTHING, seed=0, step=1)
    np.testing.assert_array_equal(colour, np.repeat(grey, 3, axis=3))
    painted = np.concatenate([NOISE, 255 - NOISE, np.roll(NOISE, 1, axis=0)], axis=3)
    alone = [
        augment(painted[..., channel : channel + 1], EVERYTHING, seed=0, step=1)
        for channel in range(3)
    ]
    np.testing.assert_array_equal(
        augment(painted, EVERYTHING, seed=0, step=1), np.concatenate(alone, axis=3)
    )


def holes(side: int, images: int = 4000) -> set[tuple[int, int, int, int]]:
    """Return first row, last row, first column and last column of what is cut out of images."""
    white = np.full((images, HEIGHT, WIDTH, 1), 255, np.uint8)
    cut = augment(white, Augmentation(cutout=side), seed=0, step=1)[..., 0] == 0
    found = set()
    for hole in cut:
        if hole.any():
            rows, columns = (np.flatnonzero(hole.any(axis=axis)) for axis in (1, 0))
            assert hole.sum() == len(rows) * len(columns)
            top, bottom, left, right = map(int, (rows[0], rows[-1], columns[0], columns[-1]))
            assert hole[top : bottom + 1, left : right + 1].all()
            found.add((top, bottom, left, right))
    return found


def squares(side: int) -> set[tuple[int, int, int, int]]:
    """Return the same of each square whose centre is a pixel, cut off at the image's edges."""

    def ends(length: int) -> list[tuple[int, int]]:
        starts = [centre - side // 2 for centre in range(length)]
        return [(max(0, start), min(length, start + side) - 1) for start in starts]

    return {(*rows, *columns) for rows in ends(HEIGHT) for columns in ends(WIDTH)}


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 8])
def test_the_centre_of_a_cutout_is_any_pixel(side: int) -> None:
    """A square is cut out whose centre reaches every pixel, so that some are cut at the edges."""
    assert holes(side) == squares(side)


@pytest.mark.parametrize("side", [1, 2, 3, 4, 7, 11])
def test_a_cutout_removes_at_most_its_square(side: int) -> None:
    """No more than a square is removed, and the rest stays as it is."""
    white = np.full((500, HEIGHT, WIDTH, 1), 255, np.uint8)
    cut = augment(white, Augmentation(cutout=side), seed=0, step=1)
    assert set(np.unique(cut)) <= {0, 255}
    assert (cut == 0).sum(axis=(1, 2, 3)).max() <= side**2
