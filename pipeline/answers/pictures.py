"""Pictures of any kind, prepared as the images that a model was trained on.

MNIST's makers fitted each digit into a box of 20×20 pixels and put its centre of mass into the
middle of 28×28 pixels, light on dark. Source: the MNIST database's page,
http://yann.lecun.com/exdb/mnist/. A picture may be drawn or photographed, on any ground.
"""

import io
import warnings
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from scipy import ndimage

from pipeline.answers.settings import Pictures
from pipeline.core.errors import PictureError, one_line
from pipeline.datasets.raw import PIXEL_MAX

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
SUFFIXES = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"}
MOST_PIXELS = 50_000_000
# A picture is reduced to this before anything else: strokes stay several pixels wide.
WORKING_SIDE = 512
# Ink differs from the ground by at least so many grey levels, and by more than its grain does.
FAINTEST_LEVELS = 12.0
GRAIN = 4.0  # times the ground's median difference from a plane
# A pixel belongs to the ink's box from this share of the strongest ink on, and a blot from this
# share of the largest one's pixels on; the rest is dust.
IN_BOX = 0.2
SMALLEST_BLOT = 0.05
# The share of the pixels that may be darker than the strongest ink: glints and dirt.
GLINTS = 0.0005
THINNEST_STROKE = 1.6  # pixels in the image; MNIST's strokes are two to three wide


def read_picture(content: bytes, name: str, most_pixels: int = MOST_PIXELS) -> Image.Image:
    """Return a picture, upright, from the content of a file.

    Parameters
    ----------
    content : bytes
        One of `FORMATS`.
    name : str
        For errors.
    most_pixels : int

    Raises
    ------
    PictureError
        If it is of another format, damaged, or larger than `most_pixels`.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the number of pixels is checked here
            picture = Image.open(io.BytesIO(content), formats=FORMATS)
            if picture.width * picture.height > most_pixels:
                raise PictureError(
                    f"{name}: has {picture.width:,} × {picture.height:,} pixels, at most "
                    f"{most_pixels:,} are read; make it smaller"
                )
            # A JPEG is decoded at a fraction of its size, where that is enough.
            picture.draft("RGB", (2 * WORKING_SIDE, 2 * WORKING_SIDE))
            picture.load()
            return ImageOps.exif_transpose(picture)
    except UnidentifiedImageError as error:
        known = ", ".join(FORMATS)
        raise PictureError(f"{name}: is not a picture; expected one of {known}") from error
    except Image.DecompressionBombError as error:  # Pillow looks at the number of pixels first
        raise PictureError(
            f"{name}: has too many pixels, at most {most_pixels:,} are read; make it smaller"
        ) from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise PictureError(f"{name}: is damaged ({one_line(error)}); save it again") from error


def read_file(path: Path) -> Image.Image:
    """Return the picture in a file; a PictureError if it cannot be read."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise PictureError(f"{path}: cannot be read ({error.strerror})") from error
    return read_picture(content, str(path))


def prepare(
    picture: Image.Image, shape: tuple[int, ...], settings: Pictures | None, name: str
) -> NDArray[np.uint8]:
    """Return a picture as an image for a model.

    Parameters
    ----------
    picture : Image
    shape : (int, int, int)
        Height, width and channels of the model's images.
    settings : Pictures or None
        None fits the whole picture into the image, as it is.
    name : str
        For errors.

    Returns
    -------
    array of uint8, shape (height, width, channels)

    Raises
    ------
    PictureError
        If there is nothing on it, or the channels are neither one nor three.
    """
    height, width, channels = shape
    if settings is None:
        if channels not in (1, 3):
            raise PictureError(
                f"{name}: the model takes images of {channels} channels, a picture has 1 or 3"
            )
        fitted = ImageOps.pad(
            _on_white(picture).convert("L" if channels == 1 else "RGB"),
            (width, height),
            Image.Resampling.LANCZOS,
        )
        return np.asarray(fitted, np.uint8).reshape(height, width, channels)
    if channels != 1:
        raise PictureError(f"{name}: ink is looked for in images of one channel, not {channels}")
    ink = find_ink(picture, name)
    box = fit(ink, min(settings.longer_side, height, width))
    return place(box, height, width, settings.centre)[..., None]


def _on_white(picture: Image.Image) -> Image.Image:
    """Return a picture with what is transparent turned white, as paper is."""
    if picture.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in picture.info:
        upper = picture.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", upper.size, "white"), upper).convert("RGB")
    if picture.mode.startswith("I") or picture.mode == "F":  # 16 bits or more for a pixel
        values = np.nan_to_num(np.asarray(picture, np.float64), posinf=0, neginf=0)
        spread = max(float(np.ptp(values)), 1e-9)
        grey = ((values - values.min()) / spread * PIXEL_MAX).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    return picture.convert("RGB")


def find_ink(picture: Image.Image, name: str) -> NDArray[np.float64]:
    """Return how much ink is at each pixel, 0…1, cropped to where there is any.

    The ground is a plane of colour through the borders, since light falls unevenly on paper; ink is
    what differs from it, be it lighter or darker.

    Raises
    ------
    PictureError
        If nothing differs from the ground.
    """
    paper = _on_white(picture)
    if max(paper.size) > WORKING_SIDE:
        paper = ImageOps.contain(paper, (WORKING_SIDE, WORKING_SIDE), Image.Resampling.BOX)
    pixels = np.asarray(paper, np.float64)
    ground, grain = _ground(pixels)
    contrast = np.abs(pixels - ground).max(axis=2)
    strongest = float(np.partition(contrast, -1 - int(GLINTS * contrast.size), axis=None)[
        -1 - int(GLINTS * contrast.size)
    ])  # fmt: skip
    faintest = max(FAINTEST_LEVELS / 2, GRAIN * grain)
    if strongest < max(FAINTEST_LEVELS, 2 * faintest):
        raise PictureError(
            f"{name}: has nothing on it that differs from its ground; draw darker, or come closer"
        )
    ink = ((contrast - faintest) / (strongest - faintest)).clip(0, 1)
    blots, count = ndimage.label(ink > IN_BOX, np.ones((3, 3)))
    sizes = np.bincount(blots.reshape(-1), minlength=count + 1)
    sizes[0] = 0
    kept = np.isin(blots, np.flatnonzero(sizes >= SMALLEST_BLOT * sizes.max()))
    near = ndimage.binary_dilation(kept, np.ones((3, 3)))  # with the soft edges of the strokes
    rows, columns = (np.flatnonzero(kept.any(axis=axis)) for axis in (1, 0))
    inside = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
    cropped: NDArray[np.float64] = np.where(near, ink, 0)[inside]
    return cropped


def _ground(pixels: NDArray[np.float64]) -> tuple[NDArray[np.float64], float]:
    """Return a plane of colour through the borders, and by how much they differ from it.

    Border pixels that are far from the rest are ink that reaches the edge, and do not count.
    """
    height, width, _ = pixels.shape
    wide = max(1, min(height, width) // 24)
    rows, columns = np.mgrid[:height, :width]
    edge = (rows < wide) | (rows >= height - wide) | (columns < wide) | (columns >= width - wide)
    values = pixels[edge]
    places = np.stack([np.ones(len(values)), rows[edge], columns[edge]], axis=1)
    far = np.abs(values - np.median(values, axis=0)).max(axis=1)
    usual = far <= max(2 * float(np.median(far)), FAINTEST_LEVELS)
    plane, *_ = np.linalg.lstsq(places[usual], values[usual], rcond=None)
    grain = float(np.median(np.abs(values[usual] - places[usual] @ plane).max(axis=1)))
    everywhere = np.stack([np.ones_like(rows), rows, columns], axis=2) @ plane
    return everywhere, grain


def fit(ink: NDArray[np.float64], longer_side: int) -> NDArray[np.float64]:
    """Return ink whose longer side is `longer_side` pixels, with strokes that can be seen.

    A thin line would fade away when it is made smaller; it is thickened first.
    """
    scale = longer_side / max(ink.shape)
    inside = ndimage.distance_transform_edt(np.pad(ink > 0.5, 1))
    half = float(np.quantile(inside[inside > 0], 0.9)) if (inside > 0).any() else 0.5
    missing = (THINNEST_STROKE / scale - 2 * half) / 2
    if missing >= 1:
        radius = round(missing)
        ink = np.pad(ink, radius)
        ink = ndimage.grey_dilation(ink, footprint=_disc(radius))
    height, width = (max(1, round(side * longer_side / max(ink.shape))) for side in ink.shape)
    values = Image.fromarray(ink.astype(np.float32), "F")
    smaller = np.asarray(values.resize((width, height), Image.Resampling.BICUBIC), np.float64)
    fitted: NDArray[np.float64] = smaller.clip(0, None) / max(float(smaller.max()), 1e-9)
    return fitted


def _disc(radius: int) -> NDArray[np.bool_]:
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc: NDArray[np.bool_] = rows**2 + columns**2 <= radius**2
    return disc


def place(
    box: NDArray[np.float64], height: int, width: int, centre: Literal["mass", "box"]
) -> NDArray[np.uint8]:
    """Return an image (height, width) with a box of ink, 0…1, in its middle.

    It is moved by whole pixels, so that strokes stay sharp, and never over an edge.
    """
    tops = []
    for axis, side in ((0, height), (1, width)):
        middle, target = (box.shape[axis] - 1) / 2, (side - 1) / 2
        if centre == "mass":
            weights = box.sum(axis=1 - axis)
            middle = float(weights @ np.arange(box.shape[axis]) / weights.sum())
            target = side / 2  # where it is in MNIST: at pixel 14 of 0…27, on average
        top = round(target - middle)
        tops.append(min(max(top, 0), side - box.shape[axis]))
    image = np.zeros((height, width), np.uint8)
    image[tops[0] : tops[0] + box.shape[0], tops[1] : tops[1] + box.shape[1]] = np.rint(
        box * PIXEL_MAX
    )
    return image
