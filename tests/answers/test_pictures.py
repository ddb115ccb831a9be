import io
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from scipy import ndimage
from sklearn.datasets import load_digits

from pipeline.answers.pictures import THINNEST_STROKE, prepare, read_file, read_picture
from pipeline.answers.settings import Pictures
from pipeline.core.errors import PictureError
from tests.answers.helpers import (
    box_of,
    centre_of_mass,
    difference,
    draw_two,
    encode,
    inverted,
    sides,
)

MASS = Pictures(longer_side=20, centre="mass")
BOX = Pictures(longer_side=20, centre="box")
SHAPE = (28, 28, 1)
SIZES = (28, 40, 56, 80, 112, 160, 224, 320, 640, 1200)
LARGE = draw_two(1200)


def prepared(picture: Image.Image, settings: Pictures | None = MASS) -> NDArray[np.uint8]:
    return prepare(picture, SHAPE, settings, "it")


def through(content: bytes, settings: Pictures = MASS) -> NDArray[np.uint8]:
    return prepared(read_picture(content, "it"), settings)


def nearly(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> float:
    """Return the difference of two images, of which one may be moved by a pixel."""
    moves = [(down, right) for down in (-1, 0, 1) for right in (-1, 0, 1)]
    return min(difference(first, np.roll(second, move, (0, 1))) for move in moves)


@pytest.mark.parametrize("size", SIZES)
def test_a_shape_is_the_same_image_at_any_size_light_or_dark(size: int) -> None:
    """A drawn shape becomes the same image at any size, be it light on dark or dark on light."""
    smaller = LARGE.resize((size, size), Image.Resampling.BOX)
    image = prepared(smaller)
    assert nearly(prepared(LARGE), image) < (0.25 if size < 80 else 0.08)
    assert difference(image, prepared(inverted(smaller))) < 0.01
    assert sides(box_of(image))[0] == 20
    assert image.max() == 255


@pytest.mark.parametrize("digit", range(10))
def test_scikit_learns_digits_are_the_same_image_however_they_are_shown(digit: int) -> None:
    """A digit of scikit-learn's is the same image enlarged, inverted, and off the centre."""
    pixels = np.pad(load_digits().images[digit] / 16 * 255, 3).astype(np.uint8)
    picture = Image.fromarray(pixels).resize((140, 140), Image.Resampling.BICUBIC)
    expected = prepared(picture)
    assert difference(expected, prepared(inverted(picture))) < 0.01
    wide = Image.new("L", (300, 260))
    wide.paste(picture, (130, 90))
    assert nearly(expected, prepared(wide)) < 0.1
    assert nearly(expected, prepared(picture.resize((420, 420)))) < 0.25


@pytest.mark.parametrize("place", [(0, 0), (160, 0), (0, 160), (160, 160), (37, 111)])
def test_a_shape_off_the_centre_is_the_same_image(place: tuple[int, int]) -> None:
    """Where on the sheet a shape is drawn makes no difference."""
    sheet = Image.new("L", (300, 300), 255)
    sheet.paste(draw_two(), place)
    assert difference(prepared(draw_two()), prepared(sheet)) < 0.01


@pytest.mark.parametrize(
    ("ground", "ink"),
    [
        ((250, 240, 190), (20, 30, 120)),
        ((30, 60, 40), (250, 250, 240)),
        ((200, 40, 40), (40, 200, 40)),
        ((130, 130, 130), (100, 100, 100)),
    ],
)
def test_colours_of_paper_and_ink_make_no_difference(
    ground: tuple[int, int, int], ink: tuple[int, int, int]
) -> None:
    """On coloured paper, in coloured ink, be it pale, a shape is the same image."""
    assert difference(prepared(draw_two()), prepared(draw_two(140, ink, ground, "RGB"))) < 0.01


def test_uneven_light_and_grain_make_no_difference() -> None:
    """On paper that is darker at one side, and grainy, a shape is nearly the same image."""
    ink = 1 - np.asarray(draw_two(400), np.float64) / 255
    light = np.linspace(120, 240, 400)[None, :] * (1 - 0.8 * ink)
    noisy = light + np.random.default_rng(0).normal(0, 2, light.shape)
    photographed = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    assert nearly(prepared(draw_two(400)), prepared(photographed)) < 0.2


@pytest.mark.parametrize(
    ("orientation", "turn"),
    [
        (2, Image.Transpose.FLIP_LEFT_RIGHT),
        (3, Image.Transpose.ROTATE_180),
        (6, Image.Transpose.ROTATE_90),
        (8, Image.Transpose.ROTATE_270),
    ],
)
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_a_picture_is_turned_upright(kind: str, orientation: int, turn: Image.Transpose) -> None:
    """A picture that says in its EXIF data how the camera was held is turned upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    upright = encode(draw_two(), kind)
    turned = encode(draw_two().transpose(turn), kind, exif=exif.tobytes())
    assert nearly(through(upright), through(turned)) < 0.05


def with_transparency(mode: str) -> Image.Image:
    alpha = inverted(draw_two())
    layer = Image.new(mode, alpha.size, 0 if mode == "LA" else (0, 0, 0, 0))
    layer.putalpha(alpha)
    return layer


def sixteen_bits() -> Image.Image:
    return Image.fromarray(np.asarray(draw_two()).astype(np.uint16) * 100 + 7000)


MODES: dict[str, Callable[[], Image.Image]] = {
    "1": lambda: draw_two().convert("1", dither=Image.Dither.NONE),
    "L": draw_two,
    "LA": lambda: with_transparency("LA"),
    "RGB": lambda: draw_two(140, (0, 0, 0), (255, 255, 255), "RGB"),
    "RGBA": lambda: with_transparency("RGBA"),
    "P": lambda: draw_two().convert("P"),
    "I;16": sixteen_bits,
}


@pytest.mark.parametrize("mode", MODES)
def test_a_png_may_have_any_mode(mode: str) -> None:
    """Transparency is paper, and 1, 8 or 16 bits, colours and palettes give the same image."""
    assert difference(prepared(draw_two()), through(encode(MODES[mode]()))) < 0.01


def test_a_palette_with_transparency_is_ink_on_paper() -> None:
    """In a palette's picture the transparent colour is paper, whatever its own colour is."""
    picture = draw_two(140, 1, 0, "P")
    picture.putpalette([0, 0, 0, 0, 0, 0])
    assert difference(prepared(draw_two()), through(encode(picture, transparency=0))) < 0.01


@pytest.mark.parametrize("kind", ["JPEG", "BMP", "GIF", "WEBP", "TIFF"])
def test_each_format_is_read(kind: str) -> None:
    """A picture may be saved in each of the formats, also with losses."""
    picture = draw_two(140, (0, 0, 0), (255, 255, 255), "RGB")
    assert difference(prepared(draw_two()), through(encode(picture, kind))) < 0.06


def test_a_jpeg_of_cmyk_is_read() -> None:
    """A JPEG in the colours of print is the same image."""
    picture = draw_two(140, (0, 0, 0), (255, 255, 255), "RGB").convert("CMYK")
    assert difference(prepared(draw_two()), through(encode(picture, "JPEG"))) < 0.06


def test_a_picture_of_floats_is_read() -> None:
    """A TIFF of floating-point numbers is read, and what is no number in it is black."""
    values = np.asarray(draw_two(), np.float32) * 1e30
    values[0, 0], values[139, 139], values[0, 139] = np.nan, np.inf, -np.inf
    image = through(encode(Image.fromarray(values), "TIFF"))
    assert nearly(prepared(draw_two()), image) < 0.05


def shapes() -> list[Image.Image]:
    """Return a bar, a corner, a triangle, and a two, away from the middle."""
    drawn = []
    for number in range(4):
        sheet = Image.new("L", (200, 160), 255)
        pen = ImageDraw.Draw(sheet)
        if number == 0:
            pen.line([60, 20, 60, 120], 0, 12)
        elif number == 1:
            pen.line([30, 30, 30, 130, 120, 130], 0, 14)
        elif number == 2:
            pen.polygon([(100, 20), (180, 60), (100, 150)], 0)
        else:
            sheet.paste(draw_two(120), (70, 30))
        drawn.append(sheet)
    return drawn


@pytest.mark.parametrize("picture", shapes())
def test_the_centre_of_mass_is_where_it_is_in_mnist(picture: Image.Image) -> None:
    """The ink's centre of mass is at pixel 14, to half a pixel, and the longer side has 20."""
    image = prepared(picture)
    mass = ndimage.center_of_mass(image[..., 0].astype(float))
    assert centre_of_mass(image) == pytest.approx(mass)
    assert mass == pytest.approx((14, 14), abs=0.5)
    assert max(sides(box_of(image))) == 20


@pytest.mark.parametrize("picture", shapes())
@pytest.mark.parametrize("side", [8, 20, 28, 100])
def test_the_box_is_in_the_middle(picture: Image.Image, side: int) -> None:
    """With `box` the box of the ink is in the middle; the longer side is that of the settings."""
    image = prepared(picture, Pictures(longer_side=side, centre="box"))
    box = box_of(image)
    assert max(sides(box)) == min(side, 28)
    for each in box:
        assert (each.start + each.stop) / 2 == pytest.approx(14, abs=0.51)


def test_a_box_is_never_moved_over_an_edge() -> None:
    """A box as large as the image stays in it, wherever its centre of mass is."""
    image = prepared(shapes()[1], Pictures(longer_side=28, centre="mass"))
    assert max(sides(box_of(image))) == 28


@pytest.mark.parametrize("size", [100, 300, 500, 1500])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_thin_strokes_do_not_vanish(size: int, width: int) -> None:
    """A hairline on a large sheet is as bright and nearly as wide as a stroke that can be seen."""
    sheet = Image.new("L", (size, size), 255)
    ImageDraw.Draw(sheet).line([size * 0.2, size * 0.2, size * 0.8, size * 0.7], 0, width)
    image = prepared(sheet)
    assert image.max() == 255
    widths = (image[..., 0].astype(float) / 255).sum(axis=0)[box_of(image)[1]]
    assert np.median(widths) > 0.8 * THINNEST_STROKE


def test_a_single_point_is_ink() -> None:
    """A dot is scaled to the longer side, and not divided by nothing."""
    sheet = Image.new("L", (100, 100), 255)
    ImageDraw.Draw(sheet).ellipse([40, 40, 46, 46], 0)
    assert sides(box_of(prepared(sheet))) == [20, 20]


def test_dust_is_removed() -> None:
    """Specks on the paper change nothing, and a second part of the drawing stays."""
    dusty = draw_two(280)
    pen = ImageDraw.Draw(dusty)
    for x, y in ((10, 10), (270, 20), (15, 250), (140, 265)):
        pen.ellipse([x, y, x + 3, y + 3], 60)
    assert difference(prepared(draw_two(280)), prepared(dusty)) < 0.01
    with_bar = draw_two(280)
    ImageDraw.Draw(with_bar).line([230, 40, 230, 240], 0, 20)
    assert difference(prepared(draw_two(280)), prepared(with_bar)) > 0.3


def test_ink_that_reaches_the_edge_stays() -> None:
    """A stroke from edge to edge is ink, not ground."""
    sheet = Image.new("L", (200, 200), 255)
    ImageDraw.Draw(sheet).line([0, 100, 200, 100], 0, 20)
    image = prepared(sheet)
    assert sides(box_of(image)) == [2, 20]
    assert image[14, 4:24].min() > 100


EMPTY = {
    "white": Image.new("L", (100, 100), 255),
    "black": Image.new("RGB", (100, 100)),
    "transparent": Image.new("RGBA", (50, 50), (0, 0, 0, 0)),
    "pixel": Image.new("L", (1, 1), 77),
    "slope": Image.fromarray(np.tile(np.linspace(100, 200, 99).astype(np.uint8), (99, 1))),
    "grain": Image.fromarray(np.random.default_rng(0).integers(90, 99, (99, 99), np.uint8)),
}


@pytest.mark.parametrize("name", EMPTY)
def test_an_empty_sheet_has_nothing_on_it(name: str) -> None:
    """An even ground, one with a slope, and one with grain have nothing on them, which is said."""
    with pytest.raises(PictureError, match="it: has nothing on it that differs from its ground; "):
        prepared(EMPTY[name])


@pytest.mark.parametrize("content", [b"", b"\0", b"not a picture", b"%PDF-1.7", b"<svg></svg>"])
def test_what_is_no_picture_is_rejected(content: bytes) -> None:
    """What is no picture is rejected with the formats that are read."""
    with pytest.raises(PictureError, match="it: is not a picture; expected one of PNG, JPEG"):
        read_picture(content, "it")


def test_a_format_that_runs_programs_is_not_opened() -> None:
    """A PostScript file, for which Pillow would start Ghostscript, is not a picture."""
    with pytest.raises(PictureError, match="is not a picture"):
        read_picture(encode(draw_two().convert("RGB"), "EPS"), "it")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
@pytest.mark.parametrize("kept", [0.02, 0.3, 0.6, 0.9])
def test_a_truncated_picture_is_a_picture_error(kind: str, kept: float) -> None:
    """A picture of which the end is missing is damaged or none, and nothing else is raised."""
    noise = np.random.default_rng(0).integers(0, 256, (90, 90, 3), np.uint8)
    content = encode(Image.fromarray(noise), kind)
    with pytest.raises(PictureError, match="it: is (damaged|not a picture)"):
        read_picture(content[: int(kept * len(content))], "it")


def test_a_truncated_png_is_damaged() -> None:
    """A truncated PNG is called damaged, with the remedy."""
    content = encode(Image.effect_noise((90, 90), 80))
    with pytest.raises(PictureError, match="it: is damaged .*; save it again"):
        read_picture(content[: len(content) // 2], "it")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "WEBP", "TIFF", "BMP"])
def test_damaged_bytes_are_an_image_or_a_picture_error(kind: str) -> None:
    """A picture with damaged bytes gives an image or a PictureError, and nothing else."""
    random = np.random.default_rng(1)
    content = np.frombuffer(encode(draw_two(60).convert("RGB"), kind), np.uint8)
    for _ in range(150):
        damaged = content.copy()
        places = random.integers(0, len(content), 4)
        damaged[places] = random.integers(0, 256, 4)
        try:
            image = through(damaged.tobytes())
        except PictureError:
            continue
        assert image.shape == SHAPE


def test_too_many_pixels_are_not_decoded() -> None:
    """A small file with too many pixels is rejected before it is decoded."""
    content = encode(Image.new("1", (3000, 3001)))
    assert len(content) < 5000
    with pytest.raises(PictureError, match="3,000 × 3,001 pixels, at most 9,000,000 are read"):
        read_picture(content, "it", 9_000_000)
    assert read_picture(content, "it", 9_003_000).size == (3000, 3001)


def test_a_decompression_bomb_is_not_decoded() -> None:
    """A picture of a billion pixels is rejected by their number."""
    content = bytearray(encode(Image.new("1", (8, 8))))
    content[16:24] = (40_000).to_bytes(4, "big") * 2
    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    with pytest.raises(PictureError, match="it: has too many pixels, at most 50,000,000 are read"):
        read_picture(bytes(content), "it")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    """A missing file and a folder are named, with the reason."""
    with pytest.raises(PictureError, match="none.png: cannot be read \\(No such file"):
        read_file(tmp_path / "none.png")
    with pytest.raises(PictureError, match="cannot be read \\(Is a directory"):
        read_file(tmp_path)


def test_without_settings_the_whole_picture_is_fitted() -> None:
    """Without settings the whole picture is fitted into the image, as it is, with black edges."""
    picture = Image.new("RGB", (56, 28), (10, 200, 30))
    image = prepare(picture, (28, 28, 3), None, "it")
    assert image.shape == (28, 28, 3)
    assert (image[7:21] == (10, 200, 30)).all()
    assert not image[:7].any()
    assert not image[21:].any()


def test_without_settings_a_picture_of_the_same_size_is_unchanged() -> None:
    """A grey picture that has the image's size has its pixels."""
    pixels = np.random.default_rng(0).integers(0, 256, (12, 12), np.uint8)
    image = prepare(Image.fromarray(pixels), (12, 12, 1), None, "it")
    np.testing.assert_array_equal(image[..., 0], pixels)


def test_sixteen_bits_without_settings_use_the_whole_range() -> None:
    """Without settings, 16 bits are scaled to 8, from the darkest to the lightest."""
    pixels = np.array([[1000, 2000], [3000, 6000]], np.uint16)
    image = prepare(read_picture(encode(Image.fromarray(pixels)), "it"), (2, 2, 1), None, "it")
    np.testing.assert_array_equal(image[..., 0], [[0, 51], [102, 255]])


def test_channels_that_no_picture_has_are_rejected() -> None:
    """A model of two channels cannot answer, nor one of three that needs ink."""
    with pytest.raises(PictureError, match="images of 2 channels, a picture has 1 or 3"):
        prepare(draw_two(), (28, 28, 2), None, "it")
    with pytest.raises(PictureError, match="in images of one channel, not 3"):
        prepare(draw_two(), (28, 28, 3), MASS, "it")


def test_an_image_need_not_be_square() -> None:
    """The ink is fitted into the smaller side of an image that is not square."""
    image = prepare(draw_two(), (12, 30, 1), BOX, "it")
    assert image.shape == (12, 30, 1)
    assert max(sides(box_of(image))) == 12


def test_the_first_frame_of_an_animation_is_read() -> None:
    """Of an animation the first frame is the picture."""
    content = io.BytesIO()
    frames = [draw_two(), Image.new("L", (140, 140), 255)]
    frames[0].save(content, "GIF", save_all=True, append_images=frames[1:])
    assert difference(prepared(draw_two()), through(content.getvalue())) < 0.02
