"""Real icons out of training, as every prompt asks for them: the ceiling of all figures."""

from collections.abc import Sequence

import numpy as np

from ldm.errors import ArgumentError
from ldm.training.data import CaptionedImages
from tools.builtin_model.evaluation import scenes
from tools.builtin_model.evaluation.colours import repainted
from tools.builtin_model.evaluation.prompts import Prompt
from tools.builtin_model.icons.captions import STYLES
from tools.builtin_model.icons.colour import TONES, lch_to_rgb

WHITE = (255, 255, 255)
LENGTHS = {"small": 0.4, "big": 0.9, None: 0.85}  # of one thing, in shares of the picture's side
# Left and top corner of a small thing.
CORNERS = {"left": (0.05, 0.3), "right": (0.55, 0.3), "top": (0.3, 0.05), "bottom": (0.3, 0.55)}


def real(
    data: CaptionedImages, prompts: Sequence[Prompt], blue_aside: frozenset[str]
) -> tuple[list[Prompt], list[np.ndarray]]:
    """Compose a picture of held-out icons for each prompt: uint8 (H, W, 3), as large as the data's.

    Prompts that no repainting answers (icons of many colours) are left out. Raises ArgumentError
    for a noun without an icon, or without one in the style asked for.
    """
    icon_of = {}
    for i in reversed(data.held_out.tolist()):
        noun, style = data.rows[i]["noun"], STYLES.get(data.rows[i]["set"])
        icon_of[noun, None] = icon_of[noun, style] = i
    rng = np.random.default_rng(0)
    kept, pictures = [], []
    for prompt in prompts:
        icons = []
        for thing in prompt.things:
            if (thing.noun, prompt.style) not in icon_of:
                what = f"{thing.noun}, {prompt.style}" if prompt.style else thing.noun
                raise ArgumentError(f"{data.folder} holds no icon of {what} out of training")
            icon = np.asarray(data.images[icon_of[thing.noun, prompt.style]])
            if thing.colour:
                icon = repainted(icon, thing.colour, thing.noun in blue_aside)
            icons.append(icon)
        if all(icon is not None for icon in icons):
            kept.append(prompt)
            pictures.append(_picture(prompt, icons, rng))
    return kept, pictures


def _picture(prompt: Prompt, icons: list[np.ndarray], rng: np.random.Generator) -> np.ndarray:
    """Arrange the icons as the prompt describes; a white thing brings a background of its own."""
    size = len(icons[0])
    if prompt.kind not in ("two", "count", "background", "place", "size"):
        return icons[0]
    backgrounds = [tuple(icon[0, 0].tolist()) for icon in icons]
    background = next((colour for colour in backgrounds if colour != WHITE), WHITE)
    if prompt.background:
        background = tuple(lch_to_rgb(np.array(TONES[prompt.background])).tolist())
    if prompt.kind in ("two", "count"):
        return scenes.scene(icons * prompt.count, background, rng, size)
    length = LENGTHS["small" if prompt.place else prompt.size]
    left, top = CORNERS.get(prompt.place, ((1 - length) / 2,) * 2)
    return scenes.paste(icons, [np.array([left, top, length])], background, size)
