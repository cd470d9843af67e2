"""Name the colour of a picture as a person would, and give it another colour.

Colours are measured in OKLCH (Björn Ottosson, "A perceptual color space for image processing",
2020): lightness L in [0, 1], chroma C (0 for grays, about 0.25 for vivid colours), hue h in
degrees. Arrays have the channels last.
"""

import math
from dataclasses import dataclass

import numpy as np

# L, C, h of typical tones; `recolour` moves a picture's main colour here.
TONES = {
    "red": (0.59, 0.22, 26.0),
    "orange": (0.74, 0.17, 58.0),
    "yellow": (0.88, 0.17, 93.0),
    "green": (0.65, 0.18, 143.0),
    "blue": (0.60, 0.18, 256.0),
    "purple": (0.54, 0.19, 306.0),
    "pink": (0.79, 0.14, 355.0),
    "brown": (0.46, 0.085, 48.0),
    "black": (0.25, 0.0, 0.0),
    "white": (0.96, 0.0, 0.0),
    "gray": (0.66, 0.0, 0.0),
}
ACHROMATIC = ("black", "white", "gray")

GRAY_CHROMA = 0.045  # below it a pixel has no hue of its own
DARK = 0.42  # grays below it are outlines, tyres, eyes, unless all of a picture is dark
GRAY_LEVELS, GRAY_WEIGHTS = (0.38, 0.46, 0.8, 0.9), (0.3, 0.45, 0.45, 0.62)
WINDOW = 45.0  # degrees to each side of a main hue that belong to it

LOW, HIGH = -math.inf, math.inf


@dataclass(frozen=True)
class Words:
    """Where a word is said: hues in [a, b), lightness and chroma strictly between two bounds."""

    name: str | None
    hues: tuple[float, float] = (0, HIGH)
    lightness: tuple[float, float] = (LOW, HIGH)
    chroma: tuple[float, float] = (LOW, HIGH)

    def fits(self, lightness: float, chroma: float, hue: float) -> bool:
        """Whether the word is said of a colour."""
        return (
            self.hues[0] <= hue < self.hues[1]
            and self.lightness[0] < lightness < self.lightness[1]
            and self.chroma[0] < chroma < self.chroma[1]
        )


# The first that fits counts; None: no word is sure there.
WORDS = (
    Words("black", lightness=(LOW, 0.36), chroma=(LOW, 0.04)),
    Words("white", lightness=(0.89, HIGH), chroma=(LOW, 0.04)),
    Words("gray", lightness=(0.45, 0.83), chroma=(LOW, 0.04)),
    Words(None, chroma=(LOW, 0.04)),
    Words("black", lightness=(LOW, 0.22)),
    Words("brown", (20, 80), (0.27, 0.56), (LOW, 0.14)),
    Words("brown", (20, 80), (0.27, 0.68), (LOW, 0.11)),
    Words(None, (20, 80), (LOW, 0.56), (LOW, 0.14)),
    Words(None, chroma=(LOW, 0.06)),
    Words("pink", (335, HIGH), (0.68, HIGH)),
    Words("pink", (0, 14), (0.68, HIGH)),
    Words("red", (0, 14), (LOW, 0.64), (0.12, HIGH)),
    Words("pink", (14, 25), (0.7, HIGH)),
    Words(None, (25, 40), (0.7, HIGH)),
    Words("red", (14, 40), (0.36, HIGH), (0.13, HIGH)),
    Words("orange", (40, 48), (0.66, HIGH), (0.13, HIGH)),
    Words("orange", (48, 74), (0.64, HIGH), (0.12, HIGH)),
    Words("yellow", (74, 80), (0.84, HIGH), (0.1, HIGH)),
    Words("yellow", (80, 112), (0.76, HIGH), (0.1, HIGH)),
    Words("green", (112, 122), (LOW, 0.78)),
    Words("green", (122, 170), (LOW, HIGH), (0.07, HIGH)),
    Words("blue", (218, 278)),
    Words("purple", (292, 332), (LOW, 0.75)),
)

_LMS = np.array(  # linear sRGB -> LMS
    [[0.4122214708, 0.5363325363, 0.0514459929],
     [0.2119034982, 0.6806995451, 0.1073969566],
     [0.0883024619, 0.2817188376, 0.6299787005]], np.float32)  # fmt: skip
_LAB = np.array(  # cube root of LMS -> OKLab
    [[0.2104542553, 0.7936177850, -0.0040720468],
     [1.9779984951, -2.4285922050, 0.4505937099],
     [0.0259040371, 0.7827717662, -0.8086757660]], np.float32)  # fmt: skip
_TO_LMS, _TO_RGB = np.linalg.inv(_LAB), np.linalg.inv(_LMS)

_STEPS = np.arange(256, dtype=np.float32) / 255
_LINEAR = np.where(_STEPS <= 0.04045, _STEPS / 12.92, ((_STEPS + 0.055) / 1.055) ** 2.4)


@dataclass(frozen=True)
class MainColour:
    """The colour that most of a picture has.

    `name` is None where a person might call it something else; `hue` is None for grays.
    """

    lightness: float
    chroma: float
    hue: float | None
    name: str | None


def rgb_to_lch(rgb: np.ndarray) -> np.ndarray:
    """uint8 sRGB (…, 3) to float32 OKLCH (…, 3)."""
    lms = _LINEAR[rgb].astype(np.float32) @ _LMS.T
    lab = np.cbrt(lms) @ _LAB.T
    chroma = np.hypot(lab[..., 1], lab[..., 2])
    hue = np.degrees(np.arctan2(lab[..., 2], lab[..., 1])) % 360
    return np.stack([lab[..., 0], chroma, hue], -1)


def lch_to_rgb(lch: np.ndarray) -> np.ndarray:
    """OKLCH (…, 3) to uint8 sRGB (…, 3); what sRGB cannot show loses chroma, then is clipped."""
    lightness, chroma, hue = (lch[..., i].astype(np.float32) for i in range(3))
    radians = np.radians(hue)
    for _ in range(6):
        lab = np.stack([lightness, chroma * np.cos(radians), chroma * np.sin(radians)], -1)
        linear = (lab @ _TO_LMS.T) ** 3 @ _TO_RGB.T
        outside = ((linear < -1e-3) | (linear > 1.001)).any(-1)
        if not outside.any():
            break
        chroma = np.where(outside, chroma * 0.85, chroma)
    linear = linear.clip(0, 1)
    rgb = np.where(linear <= 0.0031308, linear * 12.92, 1.055 * linear ** (1 / 2.4) - 0.055)
    return np.rint(rgb * 255).astype(np.uint8)


def hue_distance(a: np.ndarray | float, b: float) -> np.ndarray | float:
    """Degrees between two hues the short way round, in [0, 180]."""
    return np.abs((a - b + 180) % 360 - 180)


def name_tone(lightness: float, chroma: float, hue: float) -> str | None:
    """Name one colour in OKLCH; None between two words (tan, teal, olive, indigo)."""
    hue = hue % 360
    found = (words.name for words in WORDS if words.fits(lightness, chroma, hue))
    return next(found, None)


def main_colour(rgba: np.ndarray, blue_aside: bool = False) -> MainColour:
    """Measure the main colour of a uint8 RGBA picture (H, W, 4), by area of opaque pixels.

    Grays count less than colours: a red car with black tyres and gray windows is red.
    With `blue_aside`, blue parts beside another colour, or small ones, are windows or water.
    """
    lch = rgb_to_lch(rgba[..., :3][rgba[..., 3] > 127])
    if blue_aside:
        coloured = lch[:, 1] > GRAY_CHROMA
        blue = coloured & (hue_distance(lch[:, 2], 240.0) < 35)
        if (coloured & ~blue).sum() > 0.12 * len(lch) or blue.sum() < 0.35 * len(lch):
            lch = lch[~blue]
    if not len(lch):
        return MainColour(1.0, 0.0, None, None)
    lightness, chroma, hue = lch.T
    coloured = chroma > GRAY_CHROMA
    counts = np.bincount((hue[coloured] // 10).astype(int), minlength=36)
    # The 90° window with most pixels, then its middle: the median of the hues inside.
    ring = np.concatenate([counts, counts[:8]])
    start = int(np.convolve(ring, np.ones(9), "valid").argmax()) * 10
    inside = coloured & ((hue - start) % 360 < 90)
    grays = ~coloured
    # White parts count most among grays, black ones (outlines, tyres, eyes) least.
    weight = coloured.sum() + np.interp(lightness[grays], GRAY_LEVELS, GRAY_WEIGHTS).sum()
    # A second hue half as large (big blue windows) makes a picture many-coloured.
    far = coloured & (hue_distance(hue, start + 45) > 75)
    rival = np.bincount((hue[far] // 60).astype(int)).max(initial=0)
    if inside.sum() > 0.45 * weight and rival < 0.5 * inside.sum():
        return _coloured(lch[inside], start)
    return _gray(lch[grays], len(lch)) if grays.any() else MainColour(0.5, 0.1, None, None)


def _coloured(lch: np.ndarray, start: float) -> MainColour:
    """Measure the main colour of pixels (N, 3) in the hue window that begins at `start` degrees."""
    lightness, chroma, hue = lch.T
    middle = (float(np.median((hue - start) % 360)) + start) % 360
    # Chroma in a shaded picture has a tail of dull edges: its upper half is what one sees.
    light, vivid = float(np.median(lightness)), float(np.quantile(chroma, 0.6))
    near = hue_distance(hue, middle) < 25
    name = name_tone(light, vivid, middle)
    if near.mean() < 0.65:
        name = None
    return MainColour(light, vivid, middle, name)


def _gray(lch: np.ndarray, total: int) -> MainColour:
    """Measure the main colour of a picture of `total` pixels, whose gray ones (N, 3) prevail."""
    light = lch[:, 0]
    pale = light > DARK
    # Black ears do not make a panda black, but a dark picture with highlights is dark.
    part = light[pale] if pale.mean() > 0.4 else light[~pale]
    middle = float(np.median(part))
    name = name_tone(middle, 0.0, 0.0)
    same = (np.abs(light - middle) < 0.16).sum() / total
    return MainColour(middle, 0.0, None, name if same > 0.6 else None)


def recolour(rgba: np.ndarray, main: MainColour, tone: tuple[float, float, float]) -> np.ndarray:
    """Copy uint8 RGBA (H, W, 4) with its main colour moved to `tone` (L, C, h).

    Shading stays: lightness is bent so that 0 stays 0, the main colour's L becomes the tone's,
    and highlights are as far above it as there is room. Other parts (white windows, black tyres,
    green leaves of a strawberry) keep theirs.
    """
    visible = rgba[..., 3] > 0
    lch = rgb_to_lch(rgba[..., :3][visible])
    lightness, chroma, hue = lch.T
    target_light, target_chroma, target_hue = tone
    gloss = min((1 - target_light) / max(1 - main.lightness, 1e-3), 1.0)
    if main.hue is None:
        # Grays have no hue to go by: all of similar lightness take the tone, black parts stay.
        mask = np.clip((0.07 - chroma) / 0.03, 0, 1)
        if main.lightness >= DARK:
            mask *= np.clip((lightness - DARK) / 0.1, 0, 1)
        new_chroma = target_chroma * np.clip(lightness / max(main.lightness, 1e-3), 0, 1)
        new_hue = np.full_like(hue, target_hue)
    else:
        distance = hue_distance(hue, main.hue)
        mask = np.clip((WINDOW + 20 - distance) / 20, 0, 1) * np.clip((chroma - 0.015) / 0.03, 0, 1)
        new_chroma = chroma * (target_chroma / max(main.chroma, GRAY_CHROMA))
        # Half of the spread of hues stays: enough for shading, too little to change the name.
        new_hue = target_hue + 0.4 * ((hue - main.hue + 180) % 360 - 180)
    new_light = np.where(
        lightness < main.lightness,
        lightness * target_light / max(main.lightness, 1e-3),
        target_light + (lightness - main.lightness) * gloss,
    )
    old = _to_plane(lightness, chroma, hue)
    new = _to_plane(new_light, np.minimum(new_chroma, 0.3), new_hue)
    light, a, b = old + (new - old) * mask
    mixed = np.stack([light, np.hypot(a, b), np.degrees(np.arctan2(b, a))], -1)
    result = rgba.copy()
    result[..., :3][visible] = lch_to_rgb(mixed)
    return result


def _to_plane(lightness: np.ndarray, chroma: np.ndarray, hue: np.ndarray) -> np.ndarray:
    """OKLCH parts to OKLab (3, N), where colours mix without going round the hue circle."""
    radians = np.radians(hue)
    return np.stack([lightness, chroma * np.cos(radians), chroma * np.sin(radians)])
