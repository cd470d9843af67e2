"""Only the masked region: how it is chosen, cut out and put back."""

import numpy as np
import pytest
from PIL import Image

from ldm.errors import ArgumentError
from ldm.techniques.masked_region import masked_region

NOISE = np.random.default_rng(0).integers(0, 256, (200, 300, 3), np.uint8)


def masks(*box: int) -> Image.Image:
    mask = Image.new("L", (300, 200))
    mask.paste(255, box)
    return mask


@pytest.mark.parametrize(
    ("covered", "size", "padding", "box"),
    [
        ((100, 50, 140, 90), (64, 64), 0, (100, 50, 140, 90)),
        ((100, 50, 140, 90), (64, 64), 10, (90, 40, 150, 100)),
        ((100, 50, 140, 70), (64, 64), 0, (100, 40, 140, 80)),  # grows to a square
        ((100, 50, 140, 90), (128, 64), 0, (80, 50, 160, 90)),
        ((0, 0, 40, 20), (64, 64), 0, (0, 0, 40, 40)),  # moves where the picture ends
        ((260, 180, 300, 200), (64, 64), 0, (260, 160, 300, 200)),
        ((0, 0, 300, 20), (64, 64), 0, (0, 0, 300, 200)),  # there is no room for a square
        ((10, 10, 20, 20), (64, 64), 999, (0, 0, 300, 200)),
    ],
)
def test_region_has_the_shape_of_the_size(covered, size, padding, box) -> None:
    image = Image.fromarray(NOISE)
    region = masked_region(image, masks(*covered), *size, padding, blur=0)
    assert region.box == box
    assert region.crop(image, *size).size == size


def test_paste_changes_the_mask_s_part_alone() -> None:
    image = Image.fromarray(NOISE)
    region = masked_region(image, masks(100, 50, 140, 90), 80, 80, 20, blur=3)
    before, soft = NOISE.astype(int), np.asarray(region.mask)
    whole = np.asarray(region.paste(Image.new("RGB", (80, 80), "lime"))).astype(int)
    assert (whole[soft == 0] == before[soft == 0]).all() and (soft == 0).any()
    assert (whole[soft == 255] == (0, 255, 0)).all() and (soft == 255).any()
    left, top, right, bottom = region.box  # the soft edge is inside
    soft = soft.copy()
    soft[top:bottom, left:right] = 0
    assert not soft.any()
    same = np.asarray(region.paste(image.crop(region.box)))
    assert (same == NOISE).all() and (np.asarray(image) == NOISE).all()


def test_mask_of_another_size_is_stretched() -> None:
    mask = Image.new("L", (30, 20))
    mask.paste(255, (10, 5, 14, 9))
    left, top, right, bottom = masked_region(Image.fromarray(NOISE), mask, 8, 8, 0, 0).box
    # Lanczos's filter reaches as far as 30 pixels here.
    assert 70 <= left <= 100 and 20 <= top <= 50 and 140 <= right <= 170 and 90 <= bottom <= 120


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"mask": masks(0, 0, 0, 0)}, "mask_image has no white"),
        ({"padding": -1}, "padding is -1"),
        ({"blur": 1000}, r"mask_blur is 1000; it must be in \[0, 256\]"),
        ({"width": 0}, "the size is 0x64"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words) -> None:
    given = {"mask": masks(0, 0, 9, 9), "width": 64, "height": 64, **arguments}
    with pytest.raises(ArgumentError, match=words):
        masked_region(Image.fromarray(NOISE), **given)
