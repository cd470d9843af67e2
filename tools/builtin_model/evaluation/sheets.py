"""Two contact sheets to show: every thing, and a hundred compositions; each at most 1 MB."""

import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from ldm.images import image_grid, save_image
from tools.builtin_model.evaluation import names
from tools.builtin_model.evaluation.judge import Judged
from tools.builtin_model.evaluation.sheet import tile

SIDE, COLUMNS = 96, 27  # of `things.webp`
COMPOSITIONS, COMPOSED_COLUMNS = 100, 10
BYTES = 1_000_000
QUALITIES = range(90, 5, -5)


def things(judged: Sequence[Judged], pictures: Sequence[Image.Image]) -> Image.Image | None:
    """Put the first picture of every name over it, in alphabetical order; None without any."""
    first: dict[str, Image.Image] = {}
    for item, picture in zip(judged, pictures, strict=True):
        if item.prompt.kind == names.KIND:
            first.setdefault(item.prompt.noun, picture)
    tiles = [tile(picture, noun, SIDE) for noun, picture in sorted(first.items())]
    return image_grid(tiles, COLUMNS) if tiles else None


def compositions(judged: Sequence[Judged], pictures: Sequence[Image.Image]) -> Image.Image | None:
    """Put the first hundred pictures of compositions over their prompts; None without any."""
    pairs = [(j, p) for j, p in zip(judged, pictures, strict=True) if j.prompt.composed]
    tiles = [tile(picture, item.prompt.text, lines=3) for item, picture in pairs[:COMPOSITIONS]]
    return image_grid(tiles, COMPOSED_COLUMNS) if tiles else None


def write(judged: Sequence[Judged], pictures: Sequence[Image.Image], folder: Path) -> list[Path]:
    """Write `things.webp` and `compositions.webp`, those for which there are pictures."""
    written = []
    for name, make in (("things", things), ("compositions", compositions)):
        picture = make(judged, pictures)
        if picture is not None:
            path = folder / f"{name}.webp"
            save_image(picture, path, None, True, quality=quality(picture), method=6)
            written.append(path)
    return written


def quality(picture: Image.Image, most: int = BYTES) -> int:
    """Return the best of QUALITIES with which a WebP has at most so many bytes, or the least."""
    for value in QUALITIES:
        buffer = io.BytesIO()
        picture.save(buffer, "webp", quality=value, method=6)
        if buffer.tell() <= most:
            return value
    return QUALITIES[-1]
