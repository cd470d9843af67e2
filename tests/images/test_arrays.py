"""Arrays and tensors in place of pictures."""

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError
from ldm.images.arrays import array_pictures
from ldm.images.inputs import read_pictures

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 5, 6, 3), np.uint8)
FIRST = torch.from_numpy(PIXELS[0]).permute(2, 0, 1)
FORMS: dict[str, tuple[Any, int]] = {
    "bytes": (PIXELS[0], 1),
    "floats": (PIXELS[0] / 255, 1),
    "halves": (np.float16(PIXELS[0] / 255), 1),
    "several": (PIXELS, 2),
    "tensor": (FIRST / 255, 1),
    "tensor of bytes": (FIRST, 1),
    "tensors": (torch.stack([FIRST] * 2) / 255, 2),
    "bfloat16": ((FIRST / 255).double(), 1),
}


@pytest.mark.parametrize("form", FORMS)
def test_forms(form: str) -> None:
    source, count = FORMS[form]
    found = array_pictures(source, "image")
    assert [picture.size for picture in found] == [(6, 5)] * count
    assert (np.asarray(found[0]) == PIXELS[0]).all()


def test_grey_and_masks() -> None:
    for source in (PIXELS[0, :, :, 0], PIXELS[0, :, :, :1], torch.from_numpy(PIXELS[:1, :, :, 0])):
        (picture,) = array_pictures(source, "image")
        assert (picture.mode, picture.size) == ("L", (6, 5))
    (mask,) = array_pictures(np.array([[True, False]]), "mask_image")
    assert np.asarray(mask).tolist() == [[255, 0]]


def test_lists() -> None:
    mixed = [PIXELS[0], Image.fromarray(PIXELS[1]), FIRST / 255]
    found = read_pictures(mixed, "image", prompts=3, repeats=1)
    assert found is not None and [picture.mode for picture in found] == ["RGB"] * 3
    assert (np.asarray(found[2]) == PIXELS[0]).all()
    assert len(read_pictures(PIXELS, "image", prompts=2, repeats=2) or ()) == 4


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.full((5, 6, 3), 2.0), r"image has values from 2 to 2; expected \[0, 1\], or uint8$"),
        (FIRST / 127.5 - 1, r"expected \[0, 1\], or uint8; for \[-1, 1\], give image / 2 \+ 0.5"),
        (np.full((5, 6, 3), np.nan), "image has values from nan to nan"),
        (np.zeros((5, 6, 7)), r"image has the shape \(5, 6, 7\); expected array \(H, W, 3\)"),
        (torch.zeros(5, 6, 3), r"image has the shape \(5, 6, 3\); expected tensor \(3, H, W\)"),
        (np.zeros((1, 1, 5, 6, 3)), r"image has the shape \(1, 1, 5, 6, 3\)"),
        (np.array(3), r"image has the shape \(\)"),
        (np.zeros((0, 6, 3)), "without a pixel"),
        (np.zeros((5, 6, 3), np.int64), "image has the type int64; expected uint8, or floats"),
        (np.zeros((5, 6, 3), complex), "image has the type complex128"),
        ("https://example.com/a.png", "is an address|an address, and no network is used"),
        ("DATA:image/png;base64,", "an address, and no network is used"),
        (3, "image is of the type int; it must be a path or a PIL image"),
    ],
)
def test_refused(source: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message) as caught:
        read_pictures(source, "image", prompts=1, repeats=1)
    assert "\n" not in str(caught.value)
