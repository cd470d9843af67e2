"""The colour of the object in a finished picture, measured from its pixels.

The data builder names colours before an icon is put on its background (`icons.colour`); here the
background is taken away again first.
"""

import numpy as np

from tools.builtin_model.icons.colour import (
    ACHROMATIC,
    TONES,
    lch_to_rgb,
    main_colour,
    name_tone,
    recolour,
    rgb_to_lch,
)

# Distances in OKLab within which a pixel is background: of icons it is exactly 0, drawn ones vary.
BACKGROUND, ALIKE = 0.1, 0.025
DIM = 24
LITTLE = 0.35  # an object of which less than this share differs by more than BACKGROUND is alike


def object_mask(rgb: np.ndarray) -> np.ndarray:
    """Where uint8 sRGB (H, W, 3) differs from its plain background: bool (H, W).

    The background's colour is the median along the edge, and enclosed parts of it (between a
    bicycle's spokes) are background as well. Of an object in nearly that colour (a white rabbit on
    white), all is taken that is not joined to the edge.
    """
    distance = from_background(rgb)
    different, enclosed = distance >= BACKGROUND, ~joined_to_edge(distance < ALIKE)
    return enclosed if different.sum() < LITTLE * enclosed.sum() else different


def from_background(rgb: np.ndarray) -> np.ndarray:
    """How far each pixel of uint8 sRGB (H, W, 3) is from the background, in OKLab: (H, W)."""
    # Below DIM, OKLab tells apart what nobody sees: a black background is never drawn all alike.
    lightness, chroma, hue = np.moveaxis(rgb_to_lch(np.maximum(rgb, DIM)), -1, 0)
    plane = chroma * np.exp(1j * np.radians(hue))
    lab = np.stack([lightness, plane.real, plane.imag], -1)
    return np.linalg.norm(lab - np.median(edge(lab), axis=0), axis=-1)


def edge(pixels: np.ndarray) -> np.ndarray:
    """Return the outermost pixels of (H, W, 3): (2H + 2W - 4, 3)."""
    return np.concatenate([pixels[0], pixels[-1], pixels[1:-1, 0], pixels[1:-1, -1]])


def edge_colour(rgb: np.ndarray) -> np.ndarray:
    """Return the background of uint8 sRGB (H, W, 3): the median along the edge, uint8 (3,)."""
    return np.median(edge(rgb), axis=0).astype(np.uint8)


def background_colour(rgb: np.ndarray) -> str | None:
    """Name the background's colour; None between two words."""
    return name_tone(*rgb_to_lch(edge_colour(rgb)).tolist())


def joined_to_edge(mask: np.ndarray) -> np.ndarray:
    """Return the part of a bool (H, W) that is connected, along rows and columns, with its edge."""
    found = mask.copy()
    found[1:-1, 1:-1] = False
    while True:
        grown = found.copy()
        grown[1:] |= found[:-1]
        grown[:-1] |= found[1:]
        grown[:, 1:] |= found[:, :-1]
        grown[:, :-1] |= found[:, 1:]
        grown &= mask
        if (grown == found).all():
            return found
        found = grown


def _cut_out(rgb: np.ndarray) -> np.ndarray:
    alpha = np.where(object_mask(rgb), 255, 0).astype(np.uint8)
    return np.dstack([rgb, alpha])


def object_colour(rgb: np.ndarray, blue_aside: bool = False) -> str | None:
    """Name the colour of the object in uint8 sRGB (H, W, 3).

    None where there is no object, or a person might call its colour something else. `blue_aside`:
    blue parts may be windows or water (`icons.nouns.Noun`).
    """
    return main_colour(_cut_out(rgb), blue_aside).name


def repainted(rgb: np.ndarray, colour: str, blue_aside: bool = False) -> np.ndarray | None:
    """Give the object of an icon on white, uint8 (H, W, 3), another colour, as the builder does.

    A white object comes on blue. None where repainting does not give that colour: objects of many.
    """
    cut = _cut_out(rgb)
    main = main_colour(cut, blue_aside)
    if main.name != colour:
        if main.hue is None and main.chroma > 0:
            return None
        cut = recolour(cut, main, TONES[colour])
        # What made it "a red car" is black now; its gray windows do not hide the name.
        gray = main.name is not None and colour in ACHROMATIC
        if not gray and main_colour(cut, blue_aside and colour != "blue").name != colour:
            return None
    background = lch_to_rgb(np.array(TONES["blue"])) if colour == "white" else rgb
    return np.where(cut[..., 3:] > 0, cut[..., :3], background)
