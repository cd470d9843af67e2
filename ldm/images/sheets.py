"""Sheets: many pictures side by side with labels, and heat maps over a picture."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ldm.errors import ArgumentError

MOST_PIXELS = 89_000_000  # about what Pillow reads without a warning
LONGEST_SIDE = {".webp": 16_383, ".jpg": 65_535, ".jpeg": 65_535}  # that a format can hold
GAP = 8  # pixels around each picture
LINES = 3  # of a label; longer ones end in "…"
COLOURS = ((0, 0, 0), (70, 15, 110), (190, 45, 80), (250, 145, 40), (255, 250, 170))  # cold to hot
Font = ImageFont.FreeTypeFont | ImageFont.ImageFont  # the latter where Pillow has no FreeType
GREY = 0.35  # how much of the picture shows below its heat


def check_sheet_size(width: int, height: int, what: str, path: Path | None = None) -> None:
    """Raise ArgumentError for a sheet that is too large: to be called before a run."""
    side = LONGEST_SIDE.get(path.suffix.lower()) if path else None
    if width * height > MOST_PIXELS:
        raise ArgumentError(
            f"{what} would have {width}x{height} = {width * height:,} pixels; at most "
            f"{MOST_PIXELS:,} work: ask for fewer or smaller pictures"
        )
    if path and side and max(width, height) > side:
        raise ArgumentError(
            f"{what} would be {width}x{height}; a {path.suffix} file holds {side} pixels a side: "
            "choose .png"
        )


def sheet_size(count: int, columns: int, width: int, height: int) -> tuple[int, int]:
    """Return the largest (width, height) of a labelled sheet with cells of that size."""
    rows = math.ceil(count / columns)
    line = _line(width)
    return (
        width + 2 * GAP + columns * (width + 2 * GAP),
        LINES * line + GAP + rows * (height + 2 * GAP + LINES * line),
    )


def sheet(
    pictures: Sequence[Image.Image],
    columns: int | None = None,
    labels: Sequence[str] = (),
    column_titles: Sequence[str] = (),
    row_titles: Sequence[str] = (),
    lines: int = LINES,
) -> Image.Image:
    """Lay pictures row by row on white; ``columns`` None makes the sheet about square.

    labels: a text below each picture; column_titles, row_titles: above and left of them. All are
    cut after so many ``lines``. The font is Pillow's own, which has Latin letters only.
    Raises ArgumentError for a sheet that is too large.
    """
    if not pictures:
        raise ArgumentError("pictures is empty; give at least one")
    columns = min(columns or math.ceil(math.sqrt(len(pictures))), len(pictures))
    rows = math.ceil(len(pictures) / columns)
    width, height = max(p.width for p in pictures), max(p.height for p in pictures)
    line = _line(width)
    font = ImageFont.load_default(line * 0.8)

    def lay(texts: Sequence[str], room: int) -> list[list[str]]:
        return [_wrap(text, font, room, lines) for text in texts]

    below, above, beside = lay(labels, width), lay(column_titles, width), lay(row_titles, width)
    left = max((math.ceil(font.getlength(row)) for rows in beside for row in rows), default=0)
    left += GAP if left else 0
    top = line * max(map(len, above), default=0) + (GAP if above else 0)
    cell_width = width + 2 * GAP
    cell_height = height + 2 * GAP + line * max(map(len, below), default=0)
    size = (left + columns * cell_width, top + rows * cell_height)
    check_sheet_size(*size, "the sheet")
    whole = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(whole)

    def write(texts: list[str], x: float, y: float) -> None:
        for index, text in enumerate(texts):
            draw.text((x, y + (index + 0.5) * line), text, fill="black", font=font, anchor="mm")

    for index, picture in enumerate(pictures):
        x = left + index % columns * cell_width + GAP
        y = top + index // columns * cell_height + GAP
        whole.paste(picture, (x + (width - picture.width) // 2, y + (height - picture.height) // 2))
        if below:
            write(below[index], x + width / 2, y + height + GAP / 2)
    for column, texts in enumerate(above):
        write(texts, left + (column + 0.5) * cell_width, GAP)
    for row, texts in enumerate(beside):
        middle = top + row * cell_height + GAP + height / 2
        write(texts, left / 2 + GAP / 2, middle - len(texts) * line / 2)
    return whole


def heat(picture: Image.Image, values: np.ndarray) -> Image.Image:
    """Lay a map (h, w) over a grey copy of the picture: the least value black, the largest hot."""
    _, colours = heat_colours(values, picture.size)
    grey = np.asarray(picture.convert("L"), np.float32)[..., None]
    mixed = (1 - GREY) * colours + GREY * grey
    return Image.fromarray(mixed.round().astype(np.uint8))


def heat_colours(values: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Enlarge a map (h, w) to a size (width, height), and colour it.

    Returns the map from its least value, 0, to its largest, 1: (H, W); and its colours, 0 to 255:
    (H, W, 3).
    """
    spread = float(values.max() - values.min())
    scaled = (values - values.min()) / spread if spread else np.zeros_like(values)
    small = Image.fromarray(scaled.astype(np.float32))
    mask = np.asarray(small.resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.linspace(0, 1, len(COLOURS))
    colours = np.stack([np.interp(mask, stops, c) for c in zip(*COLOURS, strict=True)], axis=-1)
    return mask, colours


def _line(width: int) -> int:
    """Return the height of a line of text below a picture of this width."""
    return min(max(width // 10, 13), 40)


def _wrap(text: str, font: Font, room: int, most: int) -> list[str]:
    """Break the text into lines of at most ``room`` pixels, between words if possible."""
    lines, words = [""], text.split()
    while words and len(lines) <= most:
        word = words.pop(0)
        longer = f"{lines[-1]} {word}".strip()
        if font.getlength(longer) <= room:
            lines[-1] = longer
        elif lines[-1]:
            lines.append("")
            words.insert(0, word)
        else:  # a word that is longer than a line
            fits = 1
            while font.getlength(word[: fits + 1]) <= room:  # the whole word is longer
                fits += 1
            lines[-1] = word[:fits]
            if word[fits:]:
                lines.append("")
                words.insert(0, word[fits:])
    if len(lines) > most:
        lines = [*lines[: most - 1], f"{lines[most - 1].rstrip()}…"]
    return lines
