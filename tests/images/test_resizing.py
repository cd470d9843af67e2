"""Pictures of another shape: cropped, filled at the edges, and filled where they are masked."""

import numpy as np
from PIL import Image

from ldm.images.resizing import crop_and_resize, fill_masked, resize_and_fill


def halves() -> Image.Image:
    """Red at the left, blue at the right, with a line of green at the top and the bottom."""
    pixels = np.zeros((40, 80, 3), np.uint8)
    pixels[:, :40, 0] = pixels[:, 40:, 2] = 255
    pixels[[0, -1]] = (0, 255, 0)
    return Image.fromarray(pixels)


def test_crop_keeps_the_middle() -> None:
    square = np.asarray(crop_and_resize(halves(), 40, 40))
    assert (square == np.asarray(halves())[:, 20:60]).all()
    wide = crop_and_resize(halves(), 160, 20)
    assert wide.size == (160, 20) and not np.asarray(wide)[..., 1].any()  # the lines are cut off
    assert crop_and_resize(halves().convert("L"), 7, 3).mode == "L"


def test_fill_repeats_the_edges() -> None:
    tall = np.asarray(resize_and_fill(halves(), 80, 100))
    assert (tall[30:70] == np.asarray(halves())).all()
    assert (tall[:31] == (0, 255, 0)).all() and (tall[69:] == (0, 255, 0)).all()
    wide = np.asarray(resize_and_fill(halves(), 200, 40))
    assert (wide[5, :61] == (255, 0, 0)).all() and (wide[5, 139:] == (0, 0, 255)).all()
    assert resize_and_fill(halves(), 3, 99).size == (3, 99)


def test_masked_part_takes_the_colours_around_it() -> None:
    picture = np.full((64, 96, 3), (200, 40, 40), np.uint8)
    picture[:, 48:] = (40, 40, 200)
    picture[20:44, 10:30] = picture[20:44, 66:86] = (0, 255, 0)  # what must not be seen
    mask = np.zeros((64, 96), np.uint8)
    mask[18:46, 8:32] = mask[18:46, 64:88] = 255
    filled = np.asarray(fill_masked(Image.fromarray(picture), Image.fromarray(mask))).astype(int)
    assert (filled[mask == 0] == picture[mask == 0]).all()
    left, right = filled[32, 20], filled[32, 76]
    assert abs(filled[..., 1] - 40).max() <= 12  # no green is left, but for rounding
    assert left[0] > left[2] + 60 and right[2] > right[0] + 60  # of the own side
    all_masked = fill_masked(Image.fromarray(picture), Image.new("L", (96, 64), 255))
    assert (np.asarray(all_masked) == picture).all()
