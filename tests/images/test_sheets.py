"""Sheets: every picture is where it should be, unchanged, with its words beside it."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ArgumentError
from ldm.images.sheets import GAP, check_sheet_size, heat, sheet, sheet_size

WIDTH, HEIGHT = 40, 24


def pictures(count: int) -> list[Image.Image]:
    """Each of one grey, darker from one to the next, with a red corner."""
    made = []
    for index in range(count):
        made.append(Image.new("RGB", (WIDTH, HEIGHT), (100 - index,) * 3))
        made[-1].putpixel((0, 0), (255, 0, 0))
    return made


def corners(whole: Image.Image) -> list[tuple[int, int]]:
    """Where the red corners are: (x, y), row by row."""
    pixels = np.asarray(whole)
    return [(int(x), int(y)) for y, x in np.argwhere((pixels == (255, 0, 0)).all(axis=-1))]


def dark(whole: Image.Image, box: tuple[int, int, int, int]) -> bool:
    """Whether something is written there."""
    box = (*box[:2], min(box[2], whole.width), min(box[3], whole.height))
    return bool(np.asarray(whole.crop(box).convert("L")).min() < 60)


@pytest.mark.parametrize(("count", "columns"), [(1, None), (3, None), (4, 2), (5, 3), (2, 9)])
@pytest.mark.parametrize("words", [False, True])
def test_pictures_stay_whole_and_in_order(count: int, columns: int | None, words: bool) -> None:
    own = pictures(count)
    labels = [f"label {n}" for n in range(count)] if words else []
    whole = sheet(own, columns, labels)
    across = min(columns or {1: 1, 3: 2}[count], count)
    at = corners(whole)
    assert len(at) == count
    assert [y for _, y in at] == [at[n // across * across][1] for n in range(count)]
    for picture, (x, y) in zip(own, at, strict=True):
        part = whole.crop((x, y, x + WIDTH, y + HEIGHT))
        assert (np.asarray(part) == np.asarray(picture)).all()
        below = (x, y + HEIGHT, x + WIDTH, y + HEIGHT + GAP + 12)
        assert dark(whole, below) == words
    assert whole.width == across * (WIDTH + 2 * GAP)


def test_titles() -> None:
    whole = sheet(pictures(4), 2, column_titles=["abc", ""], row_titles=["", "defgh"])
    (x0, y0), (x1, _), (_, y2), _ = corners(whole)
    assert dark(whole, (x0, 0, x0 + WIDTH, y0)) and not dark(whole, (x1, 0, x1 + WIDTH, y0))
    assert not dark(whole, (0, y0, x0, y0 + HEIGHT)) and dark(whole, (0, y2, x0, y2 + HEIGHT))


def test_long_words_stay_in_their_cells() -> None:
    whole = sheet(pictures(2), 2, ["x" * 500, "W " * 500])
    (x0, y0), (x1, _) = corners(whole)
    assert dark(whole, (x0 - GAP, y0 + HEIGHT, x1 - GAP, whole.height))
    assert not dark(whole, (x1 - GAP, 0, x1, whole.height))  # between the two
    assert whole.height < y0 + HEIGHT + 4 * 13 + 2 * GAP  # three lines at most


def test_the_size_is_known_beforehand() -> None:
    texts = ["many words in every label " * 5] * 6
    whole = sheet(pictures(6), 3, texts, texts[:3], texts[:2])
    width, height = sheet_size(6, 3, WIDTH, HEIGHT)
    assert width >= whole.width > 0.8 * width
    assert height >= whole.height > 0.8 * height


@pytest.mark.parametrize(
    ("size", "path", "message"),
    [
        ((10_000, 10_000), None, "it would have 10000x10000 = 100,000,000 pixels; at most"),
        ((20_000, 10), Path("a.webp"), "it would be 20000x10; a .webp file holds 16383 pixels"),
        ((70_000, 10), Path("a.JPG"), "it would be 70000x10; a .JPG file holds 65535 pixels"),
    ],
)
def test_sheets_that_are_too_large(size: tuple[int, int], path: Path | None, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        check_sheet_size(*size, "it", path)
    check_sheet_size(70_000, 10, "it", Path("a.png"))


def test_no_pictures() -> None:
    with pytest.raises(ArgumentError, match="pictures is empty"):
        sheet([])


def test_heat() -> None:
    picture = Image.new("RGB", (64, 32), (128, 128, 128))
    values = np.zeros((4, 8), np.float32)
    values[1, 6] = 3.0
    shown = np.asarray(heat(picture, values)).astype(int).sum(axis=-1)
    assert shown.shape == (32, 64)
    y, x = np.unravel_index(shown.argmax(), shown.shape)
    assert abs(y - 12) <= 4 and abs(x - 52) <= 4
    assert shown[:, :32].max() == shown[28, 4] == 3 * round(0.35 * 128)  # cold: the dimmed picture
    flat = np.asarray(heat(picture, np.full((4, 8), 0.2)))
    assert (flat == round(0.35 * 128)).all()
