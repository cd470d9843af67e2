"""Drawing a part of a picture at a size of its own: "only masked" inpainting.

The region around the mask is cut out, drawn anew at the size that a model draws well, and put back
at its own size: so small things get as many pixels as a whole picture.
"""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image, ImageFilter

from ldm.errors import ArgumentError
from ldm.images.files import stretch
from ldm.request import MAX_BLUR

Box = tuple[int, int, int, int]


@dataclass(frozen=True, eq=False)
class MaskedRegion:
    """A part of a picture; ``masked_region`` chooses it.

    Attributes:
        image: the whole picture, RGB. mask: what of it is replaced, "L" of the same size, softened.
        box: left, top, right, bottom of the region, in its pixels.
        padding: pixels around the mask that the region has at least, where the picture has them.
    """

    image: Image.Image
    mask: Image.Image
    box: Box
    padding: int = 0

    def crop(self, picture: Image.Image, width: int, height: int) -> Image.Image:
        """Return the region of a picture that is as large as ``image``, stretched to a size."""
        return stretch(picture.crop(self.box), height, width)

    def paste(self, drawn: Image.Image) -> Image.Image:
        """Return the whole picture with a drawn region in it; where the mask is 0, it is as before.

        drawn: RGB, of any size.
        """
        left, top, right, bottom = self.box
        part = stretch(drawn.convert("RGB"), bottom - top, right - left)
        whole = self.image.copy()
        whole.paste(part, (left, top), self.mask.crop(self.box))
        return whole


def masked_region(
    image: Image.Image,
    mask: Image.Image,
    width: int,
    height: int,
    padding: int = 32,
    blur: float = 4.0,
) -> MaskedRegion:
    """Choose the region to draw at width x height: what the mask covers, and pixels around it.

    It has the shape of that size as far as the picture has room: it grows in one direction, and
    moves where it would leave the picture. Source: ``modules/masking.py`` of A1111's web UI.

    image: RGB. mask: white is drawn anew; stretched to the image's size.
    padding: pixels of the image around the mask. blur: radius by which the mask is softened.
    Raises ArgumentError for a mask without white, for a padding or a blur out of range.
    """
    if padding < 0:
        raise ArgumentError(f"padding is {padding}; it must be at least 0 pixels")
    if not 0 <= blur <= MAX_BLUR:
        raise ArgumentError(f"mask_blur is {blur}; it must be in [0, {MAX_BLUR}] pixels")
    if width < 1 or height < 1:
        raise ArgumentError(f"the size is {width}x{height}; width and height must be at least 1")
    white = mask.convert("L")
    if white.size != image.size:
        white = stretch(white, image.height, image.width)
    if blur:
        white = white.filter(ImageFilter.GaussianBlur(blur))
    covered = white.getbbox()
    if covered is None:
        raise ArgumentError("mask_image has no white: nothing would be drawn anew")
    box = padded(covered, padding, image.size)
    return MaskedRegion(image, white, shaped(box, width / height, image.size), padding)


def padded(box: Box, padding: int, size: tuple[int, int]) -> Box:
    """Return a box with ``padding`` pixels around it, within a picture of (width, height)."""
    left, top, right, bottom = box
    return (
        max(left - padding, 0),
        max(top - padding, 0),
        min(right + padding, size[0]),
        min(bottom + padding, size[1]),
    )


def shaped(box: Box, ratio: float, size: tuple[int, int]) -> Box:
    """Return a box that grew in one direction to width/height = ``ratio``, if there is room."""
    left, top, right, bottom = box
    width, height = right - left, bottom - top
    if width / height > ratio:
        top, bottom = grown(top, bottom, round(width / ratio), size[1])
    else:
        left, right = grown(left, right, round(height * ratio), size[0])
    return left, top, right, bottom


def grown(start: int, end: int, length: int, most: int) -> tuple[int, int]:
    """Return a range of ``length``, or of ``most``, within [0, most], around one in its middle."""
    length = min(max(length, end - start), most)
    start -= (length - (end - start)) // 2
    start = min(max(start, 0), most - length)
    return start, start + length
