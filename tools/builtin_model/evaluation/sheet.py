"""Pictures with words under them, many on one sheet."""

import textwrap
from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont

from ldm.images import image_grid
from tools.builtin_model.evaluation.judge import Judged

FONT_SIZE, LINE, GAP = 12, 15, 5  # pixels
GREEN, RED = "#2c9c3e", "#d23b2f"


def tile(
    picture: Image.Image, caption: str, side: int = 128, frame: str = "white", lines: int = 2
) -> Image.Image:
    """Frame the picture at `side` pixels, over its caption on `lines` lines at most."""
    width = side + 2 * GAP
    tile = Image.new("RGB", (width, width + lines * LINE + GAP), "white")
    draw = ImageDraw.Draw(tile)
    draw.rectangle((GAP - 3, GAP - 3, GAP + side + 2, GAP + side + 2), fill=frame)
    tile.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), (GAP, GAP))
    font = ImageFont.load_default(FONT_SIZE)
    letters = int(width / font.getlength("n"))
    wrapped = [row for part in caption.split("\n") for row in textwrap.wrap(part, letters)]
    for row, text in enumerate(wrapped[:lines]):
        at = (width / 2, GAP + side + GAP + (row + 0.5) * LINE)
        draw.text(at, text, fill="black", font=font, anchor="mm")
    return tile


def contact_sheet(
    judged: Sequence[Judged], pictures: Sequence[Image.Image], columns: int = 16
) -> Image.Image:
    """Every picture over its prompt; framed green if right, else red and over what was seen."""
    tiles = []
    for item, picture in zip(judged, pictures, strict=True):
        caption = item.prompt.text
        if not item.right:
            caption += f"\n({item.description})"
        tiles.append(tile(picture, caption, frame=GREEN if item.right else RED, lines=3))
    return image_grid(tiles, columns)
