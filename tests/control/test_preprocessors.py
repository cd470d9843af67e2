"""What all preprocessors have in common, and each of the others than canny."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image, ImageDraw
from scipy import ndimage

from ldm.control.preprocessors import (
    PREPROCESSORS,
    grey,
    inpaint,
    lineart,
    make_inpaint_condition,
    scribble,
    softedge,
    tile,
)
from ldm.control.preprocessors.parameters import parameters
from ldm.errors import ArgumentError
from tests.control.pictures import drawing, house, noise, photo

MODES = [  # of Pillow
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "HSV",
    "LA",
    "PA",
    "RGBX",
    "RGBa",
    "La",
    "I",
    "F",
    "I;16",
    "I;16L",
    "I;16B",
]


def in_mode(mode: str) -> Image.Image:
    image = noise(37, 22)
    if mode in ("I", "F") or mode.startswith("I;16"):
        whole = Image.fromarray(np.asarray(image.convert("L")).astype(np.int32) * 257)
        if mode == "F":
            return Image.fromarray(np.asarray(whole, np.float32) / 65535)
        return whole.convert(mode)
    through = {"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")
    return image.convert(through).convert(mode)


def draw(name: str, image: Image.Image) -> Image.Image:
    if name == "inpaint":
        return inpaint(image, Image.new("L", image.size, "white"))
    return PREPROCESSORS[name](image)


def values(image: Image.Image) -> np.ndarray:
    return np.asarray(image)[..., 0]


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("mode", MODES)
def test_every_mode(name: str, mode: str) -> None:
    image = in_mode(mode)
    assert image.mode == mode
    drawn = draw(name, image)
    assert (drawn.mode, drawn.size) == ("RGB", image.size)


@pytest.mark.parametrize("name", PREPROCESSORS)
@pytest.mark.parametrize("size", [(1, 1), (1, 2), (3, 1), (2, 2), (1, 300), (513, 1), (7, 5)])
def test_every_size(name: str, size: tuple[int, int]) -> None:
    assert draw(name, Image.new("RGB", size, "red")).size == size
    assert draw(name, noise(*size)).size == size


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_the_picture_is_left_as_it_is(name: str) -> None:
    image = drawing()
    image.info["parameters"] = "a face"
    before = image.tobytes()
    first, second = draw(name, image), draw(name, image)
    assert image.tobytes() == before
    assert first.tobytes() == second.tobytes()
    assert set(first.info) <= {"note"}  # settings in it are not those of the control picture


@pytest.mark.parametrize("name", PREPROCESSORS)
def test_impossible_pictures(name: str) -> None:
    for image, message in (
        (Image.new("RGB", (0, 5)), "0x5, without a pixel"),
        (Image.new("1", (5000, 5000)), r"5000x5000; at most .* \(4096, 4096\)"),
        (Image.new("1", (9000, 1)), r"9000x1; .* \(8192, 1\)"),
        (np.zeros((4, 4, 3), np.uint8), "type ndarray; it must be a PIL image"),
        ("picture.png", "type str"),
    ):
        with pytest.raises(ArgumentError, match=message):
            PREPROCESSORS[name](image)


@pytest.mark.parametrize(
    ("name", "key", "interval"),
    [
        (name, key, interval)
        for name, function in PREPROCESSORS.items()
        for key, (_, interval) in parameters(function).items()
    ],
)
def test_ranges(name: str, key: str, interval: str) -> None:
    low, high = (float(end) for end in interval[1:-1].split(","))
    others = {"high": 2040} if key == "low" else {"low": 0} if key == "high" else {}
    for value in (low, high):
        PREPROCESSORS[name](noise(9, 7), **{key: value}, **others)
    for value in (low - 1, high + 1, float("nan"), "5", None, True):
        with pytest.raises(ArgumentError, match=rf"{name}: {key} is .*; expected a number in \["):
            PREPROCESSORS[name](noise(9, 7), **{key: value}, **others)


# Soft edges


@pytest.mark.parametrize("step", [24, 48, 96])
def test_a_soft_edge_is_as_bright_as_its_formula(step: int) -> None:
    """Far from other edges, a step of height h is drawn as 1 − exp(−(h / contrast)²)."""
    pixels = np.zeros((64, 64, 3), np.uint8)
    pixels[:, 32:] = step
    drawn = values(softedge(Image.fromarray(pixels), sigma=2))[32]
    want = 255 * (1 - np.exp(-((step / 48) ** 2)))
    assert drawn[31:33] == pytest.approx([want] * 2, rel=0.06)  # the peak lies between two pixels
    assert drawn[0] == drawn[-1] == 0
    assert np.all(np.diff(drawn[:32].astype(int)) >= 0)


def test_soft_edges_are_those_of_three_scales() -> None:
    """Equal to SciPy's Gaussians to within rounding, 0.51 of 255 levels."""
    image, total = photo("flower.jpg", 128), 0.0
    for sigma in (1.0, 2.0, 4.0):
        smooth = ndimage.gaussian_filter(np.asarray(image, float), (sigma, sigma, 0), mode="mirror")
        slope = np.hypot(*np.gradient(smooth, axis=(0, 1))).max(axis=2)
        total = total + slope * sigma * np.sqrt(2 * np.pi) / 3
    want = 255 * (1 - np.exp(-((total / 48) ** 2)))
    assert np.abs(values(softedge(image)) - want).max() <= 0.51


def test_no_soft_edges_are_noted() -> None:
    assert "no edges" in softedge(Image.new("RGB", (8, 8), "red")).info["note"]


# Scribbles


@pytest.mark.parametrize(
    ("ink", "paper"),
    [("black", "white"), ("red", "white"), ("yellow", "white"), ("#445", "#e8e4d8")],
)
def test_dark_strokes_are_inverted(ink: str, paper: str) -> None:
    drawn = scribble(drawing(ink, paper), thickness=0)
    assert drawn.info["note"] == "scribble: dark strokes, inverted"
    assert np.array_equal(values(drawn), values(drawing("white", "black")))


def test_light_strokes_are_not() -> None:
    drawn = scribble(drawing("white", "black"), thickness=0)
    assert drawn.info["note"] == "scribble: light strokes, not inverted"
    assert np.array_equal(np.asarray(drawn), np.asarray(drawing("white", "black")))
    assert np.array_equal(np.asarray(scribble(drawn)), np.asarray(scribble(drawing())))


@pytest.mark.parametrize("ink", ["black", "white"])
def test_strokes_on_a_transparent_layer(ink: str) -> None:
    layer = drawing(ink, "red").convert("RGBA")
    layer.putalpha(drawing("white", "black").convert("L"))
    assert np.array_equal(
        np.asarray(scribble(layer, thickness=0)), np.asarray(drawing("white", "black"))
    )


def line_width(image: Image.Image) -> float:
    """Mean width of the face's left side."""
    return float((values(image)[118:138, :80] > 0).sum(axis=1).mean())


def test_thickness() -> None:
    """Thin strokes are widened, to 2 % of 256 pixels by default; wide ones stay."""
    assert line_width(scribble(drawing(width=1), thickness=0)) == pytest.approx(1, abs=0.5)
    assert line_width(scribble(drawing(width=1))) == pytest.approx(5.1, abs=1)
    assert line_width(scribble(drawing(width=1), thickness=5)) == pytest.approx(12.8, abs=1.5)
    assert line_width(scribble(drawing(width=9))) == pytest.approx(9, abs=0.5)


@pytest.mark.parametrize("image", [house(), photo("flower.jpg")], ids=["house", "flower"])
def test_other_pictures_become_outlines(image: Image.Image) -> None:
    drawn = scribble(image)
    assert drawn.info["note"] == "scribble: outlines of a picture"
    assert set(np.unique(np.asarray(drawn))) == {0, 255}
    assert 0.02 < (values(drawn) > 0).mean() < 0.3


def test_outlines_of_a_filled_shape_lie_on_its_edge() -> None:
    image = Image.new("RGB", (700, 600), "white")
    ImageDraw.Draw(image).rectangle([150, 150, 449, 449], fill="red")
    drawn = values(scribble(image)) > 0
    assert not drawn[200:400, 200:400].any()
    for place in (drawn[300, 140:160], drawn[140:160, 300], drawn[300, 440:460]):
        assert place.any()


@pytest.mark.parametrize("side", [512, 2048])
def test_outlines_have_the_same_share_of_every_size(side: int) -> None:
    image = Image.new("RGB", (side, side), "white")
    image.paste("red", (side // 2, 0, side, side))
    width = (values(scribble(image, thickness=1))[side // 4] > 0).sum() / side
    assert width == pytest.approx(0.01, abs=0.001)


def test_outlines_are_neither_of_specks_nor_of_texture() -> None:
    image = Image.new("RGB", (512, 512), "white")
    pen = ImageDraw.Draw(image)
    pen.rectangle([0, 0, 511, 255], fill="#a00")
    pen.ellipse([250, 380, 260, 390], fill="black")  # around it, 31 pixels: under 8 % of 512
    stripes = np.asarray(image).copy()
    stripes[:200:4] = stripes[1:200:4] = (255, 80, 80)
    for drawn in (scribble(image), scribble(Image.fromarray(stripes))):
        rows = (values(drawn) > 0).any(axis=1)
        assert rows[250:260].any()
        assert not rows[:190].any()
        assert not rows[270:].any()


def test_blank_paper_is_noted() -> None:
    drawn = scribble(Image.new("RGB", (64, 64), "white"))
    assert drawn.info["note"] == "scribble: found no outlines; lower its contrast"
    assert not np.asarray(drawn).any()


# Line art


def test_line_art_has_the_formula_of_controlnet() -> None:
    """Equal to within one of 255 levels, which is how far truncation differs from rounding."""
    cv2 = pytest.importorskip("cv2")
    pixels = np.asarray(photo("china.jpg", 512)).astype(np.float32)
    darker = (cv2.GaussianBlur(pixels, (0, 0), 6.0) - pixels).min(axis=2).clip(0, 255)
    want = (darker / max(16, np.median(darker[darker > 8])) * 127).clip(0, 255)
    assert np.abs(values(lineart(photo("china.jpg", 512))) - want).max() <= 0.51


@pytest.mark.parametrize("ink", ["black", "red"])
def test_line_art_keeps_dark_and_coloured_lines(ink: str) -> None:
    drawn = values(lineart(drawing(ink))).astype(int)
    strokes = values(drawing("white", "black")) > 0
    assert drawn[strokes].mean() > 100
    assert drawn[~strokes].max() == 0


def test_line_art_of_light_lines_is_inverted_first() -> None:
    drawn = lineart(drawing("white", "black"))
    assert drawn.info["note"] == "lineart: light strokes, inverted first"
    assert np.array_equal(np.asarray(drawn), np.asarray(lineart(drawing())))


def test_no_lines_are_noted() -> None:
    assert "no lines" in lineart(Image.new("RGB", (8, 8), "red")).info["note"]


# Tile, grey


def test_tile_blurs_by_the_mean_of_areas() -> None:
    image = noise(64, 48)
    small = np.asarray(image, float).reshape(12, 4, 16, 4, 3).mean(axis=(1, 3))
    want = Image.fromarray(np.floor(small + 0.5).astype(np.uint8)).resize((64, 48), Image.BICUBIC)
    drawn = np.asarray(tile(image, factor=4)).astype(int)
    # Pillow rounds after each axis: 1 level of the small picture, of which bicubic makes 3.
    assert np.abs(drawn - np.asarray(want)).max() <= 3
    assert np.array_equal(np.asarray(tile(image, factor=1)), np.asarray(image))


def test_grey_is_luma() -> None:
    pixels = np.asarray(noise(), float)
    luma = pixels @ [0.299, 0.587, 0.114]
    drawn = np.asarray(grey(noise()))
    assert np.abs(drawn - luma[..., None]).max() <= 0.51


# Inpainting


def halves() -> Image.Image:
    """White on the right, and a grey that is just above and just below 0.5."""
    mask = Image.new("L", (65, 48))
    mask.paste(255, (32, 0, 65, 48))
    mask.paste(128, (0, 0, 8, 8))
    mask.paste(127, (0, 8, 8, 16))
    return mask


def test_inpaint_condition_is_that_of_diffusers() -> None:
    """Bit-identical to `make_inpaint_condition` in the documentation of diffusers' ControlNet."""
    image, mask = noise(), halves()
    want = np.array(image.convert("RGB")).astype(np.float32) / 255.0
    want[np.array(mask.convert("L")).astype(np.float32) / 255.0 > 0.5] = -1.0
    condition = make_inpaint_condition(image, mask)
    assert condition.shape == (1, 3, 48, 65)
    assert np.array_equal(condition.numpy(), want[None].transpose(0, 3, 1, 2))
    shown = np.asarray(inpaint(image, mask)).astype(np.float32) / 255
    assert np.array_equal(shown, np.maximum(want, 0))


def test_transparent_parts_are_masked() -> None:
    image = noise()
    erased = image.convert("RGBA")
    erased.putalpha(halves().point(lambda value: 255 - value))  # 127 is masked, 128 is not
    ours, want = (make_inpaint_condition(*args).numpy() for args in ((erased,), (image, halves())))
    assert np.array_equal(ours < 0, want < 0)
    opaque = (np.asarray(halves()) == 0) | (want[0, 0] < 0)  # half transparent parts pale to white
    assert np.array_equal(ours[..., opaque], want[..., opaque])


def test_masks_that_cannot_be() -> None:
    image = noise()
    for mask, message in (
        (None, "give a mask, or an image with transparent parts"),
        (Image.new("L", (64, 48), 255), "mask is 64x48 and image 65x48"),
        (Image.new("L", image.size), "mask has no white"),
        ("mask.png", "mask is of the type str"),
    ):
        with pytest.raises(ArgumentError, match=message):
            inpaint(image, mask)
