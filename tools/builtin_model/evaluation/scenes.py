"""Scenes of real icons, put together here: what a perfect model would get from the judge."""

from collections.abc import Sequence

import numpy as np
from PIL import Image

from tools.builtin_model.evaluation.colours import from_background, joined_to_edge

GAP = 0.05  # least distance between two things, in shares of the picture's side
# Longer sides of the things, in shares of the picture's, by how many there are.
LENGTHS = {1: (0.55, 0.9), 2: (0.36, 0.46), 3: (0.3, 0.4), 4: (0.26, 0.38)}
ALIKE = 0.02  # distance in OKLab: the backgrounds of icons are all of one colour
TRIES = 200


def scene(
    icons: Sequence[np.ndarray],
    background: tuple[int, int, int],
    rng: np.random.Generator,
    size: int = 128,
) -> np.ndarray:
    """Icons, uint8 (H, W, 3) on plain backgrounds, scattered over another: uint8 (size, size, 3).

    They lie anywhere, apart; the data builder arranges its own otherwise.
    """
    while True:
        lengths = rng.uniform(*LENGTHS[len(icons)], len(icons))
        boxes: list[np.ndarray] = []
        for length in lengths:
            free = (_box(rng, length) for _ in range(TRIES))
            box = next((new for new in free if all(_apart(new, old) for old in boxes)), None)
            if box is None:
                break  # no room is left: begin again
            boxes.append(box)
        else:
            return paste(icons, boxes, background, size)


def _box(rng: np.random.Generator, length: float) -> np.ndarray:
    """Left, top and side of a square somewhere in the picture, off its edge."""
    return np.array([*rng.uniform(0.02, 0.98 - length, 2), length])


def _apart(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two squares have GAP between them."""
    return bool((np.maximum(a[:2], b[:2]) - np.minimum(a[:2] + a[2], b[:2] + b[2]) >= GAP).any())


def _cut_out(icon: np.ndarray) -> np.ndarray:
    """Cut out the icon, RGBA: all that is not joined to the edge; white parts on white stay."""
    inside = ~joined_to_edge(from_background(icon) < ALIKE)
    return np.dstack([icon, np.where(inside, 255, 0).astype(np.uint8)])


def paste(
    icons: Sequence[np.ndarray],
    boxes: Sequence[np.ndarray],
    background: tuple[int, int, int],
    size: int = 128,
) -> np.ndarray:
    """Icons into squares (left, top, side), in shares of the side: uint8 (size, size, 3)."""
    canvas = Image.new("RGB", (size, size), background)
    for icon, (left, top, length) in zip(icons, boxes, strict=True):
        picture = Image.fromarray(_cut_out(icon))
        picture = picture.crop(picture.getbbox())
        width, height = (max(round(length * size * s / max(picture.size)), 1) for s in picture.size)
        # Weighted by alpha, so that the old background does not shine through along the edge.
        picture = picture.convert("RGBa").resize((width, height), Image.Resampling.LANCZOS)
        middle = round(left * size + (length * size - width) / 2)
        centre = round(top * size + (length * size - height) / 2)
        picture = picture.convert("RGBA")
        canvas.paste(picture, (middle, centre), picture)
    return np.asarray(canvas)
