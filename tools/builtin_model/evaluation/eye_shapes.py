"""Find the two eyes in an icon's drawing, and draw it without one or both of them.

Nobody labels anything: the icons are SVG, in which eyes are small dark shapes of one size, side by
side, high up. Each shape is left out in turn; the pixels that change are what is seen of it.
"""

import copy
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
from scipy import ndimage

from tools.builtin_model.icons.sources import Icon, render

SIDE = 96  # pixels at which shapes are looked for
SHAPES = {"path", "circle", "ellipse", "rect", "polygon", "polyline", "line", "use"}
NOT_DRAWN = {"defs", "clipPath", "mask", "filter", "symbol", "pattern"}
MOST_SHAPES = 90  # icons with more have no simple eyes, and each costs a rendering
CHANGED = 12  # difference of 255 from which a pixel shows that a shape is gone
AREA = (0.0006, 0.022)  # of one eye, in shares of the picture
DARK = 105  # most mean luma of an eye, of 255
ALIKE = 1.7  # most ratio of two eyes' areas
OVERLAP = 0.45  # least intersection over union of one eye and the other's mirror image
LEVEL = 0.3  # most difference of height, in shares of the distance
APART = (1.2, 9.0)  # distance of the middles, in widths of an eye
LOWEST = 0.66  # of the icon's height, from its top
ROUND = (0.35, 2.9)  # height by width
REACH = 1.45  # radius of the region of an eye, in halves of its longer side: highlights, lashes
WHITE_REACH = 2.6  # … within which the white of an eye may lie
RING = 1.5  # pixels more


@dataclass(frozen=True)
class Part:
    """A connected part of what is seen of a shape."""

    shape: int  # its number in the drawing
    mask: np.ndarray  # bool (SIDE, SIDE)
    luma: float
    box: tuple[int, int, int, int]  # left, top, right, bottom

    @property
    def middle(self) -> np.ndarray:
        """X and y of the box's middle."""
        left, top, right, bottom = self.box
        return np.array([(left + right) / 2, (top + bottom) / 2])

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        left, top, right, bottom = self.box
        return right - left, bottom - top


@dataclass(frozen=True)
class Eyes:
    """An icon's eyes: where they are, and the drawing without them."""

    middles: np.ndarray  # (2, 2): x, y of the left and of the right, in shares of the side
    radii: np.ndarray  # (2,) of the regions that show them, in shares of the side
    without: Icon


def find_eyes(icon: Icon) -> Eyes | None:
    """Find the eyes; None where no two shapes look like them, or the drawing is not plain SVG."""
    root = parse(icon.body)
    if root is None:
        return None
    shapes = list(drawn_shapes(root))
    if not 2 <= len(shapes) <= MOST_SHAPES:
        return None
    whole = pixels(icon, SIDE)
    rows = np.flatnonzero((whole[..., 3] > 40).any(1))
    if not len(rows):
        return None
    seen = [visible(icon, root, [shape], whole) for shape in shapes]
    parts = [part for i, mask in enumerate(seen) for part in parts_of(i, mask, whole)]
    lowest = rows[0] + LOWEST * (rows[-1] - rows[0])
    pair = best_pair([p for p in parts if looks_like_eye(p) and p.middle[1] <= lowest])
    if pair is None:
        return None
    middles = np.stack([part.middle for part in pair])
    radii = np.array([max(part.size) / 2 for part in pair])
    chosen, reach = with_their_whites(pair, parts, seen)
    regions = discs(middles, radii * reach + RING)
    gone = [
        shape
        for i, shape in enumerate(shapes)
        if i in chosen or (seen[i].any() and (seen[i] & regions).sum() >= 0.85 * seen[i].sum())
    ]
    without = replace(icon, body=body_without(root, gone))
    return Eyes(middles / SIDE, (radii * reach + RING) / SIDE, without)


def parse(body: str) -> ET.Element | None:
    """Read the body of an icon as XML; None where it is not."""
    spaces = 'xmlns:xlink="http://www.w3.org/1999/xlink"'
    try:
        return ET.fromstring(f"<svg {spaces}>{body}</svg>")
    except ET.ParseError:
        return None


def drawn_shapes(element: ET.Element) -> Iterator[ET.Element]:
    """Yield the shapes that are drawn, in order; not those that others only refer to."""
    for child in element:
        if child.tag in SHAPES:
            yield child
        elif child.tag not in NOT_DRAWN:
            yield from drawn_shapes(child)


def body_without(root: ET.Element, gone: list[ET.Element]) -> str:
    """Return the body of the drawing with some of its shapes hidden."""
    before = [copy.copy(shape.attrib) for shape in gone]
    for shape in gone:
        shape.set("display", "none")
    text = ET.tostring(root, encoding="unicode")
    for shape, attributes in zip(gone, before, strict=True):
        shape.attrib.clear()
        shape.attrib.update(attributes)
    # The prefix that the parser chose for xlink is not the one that ``render`` declares.
    text = re.sub(r"^<svg[^>]*>|</svg>$", "", text)
    return re.sub(r"\bns\d+:href", "xlink:href", text)


def pixels(icon: Icon, side: int) -> np.ndarray:
    """Render the icon: int16 RGBA (side, side, 4), colours over mid-gray."""
    picture = np.asarray(render(icon, side)).astype(np.float32)
    alpha = picture[..., 3:] / 255
    picture[..., :3] = picture[..., :3] * alpha + 128 * (1 - alpha)
    return np.rint(picture).astype(np.int16)


def visible(icon: Icon, root: ET.Element, gone: list[ET.Element], whole: np.ndarray) -> np.ndarray:
    """Where the picture changes if shapes are left out: bool (SIDE, SIDE)."""
    less = pixels(replace(icon, body=body_without(root, gone)), SIDE)
    return np.abs(whole - less).max(2) >= CHANGED


def parts_of(shape: int, mask: np.ndarray, whole: np.ndarray) -> Iterator[Part]:
    """Yield the connected parts of a shape's mask."""
    luma = whole[..., :3] @ np.array([0.299, 0.587, 0.114])
    labels, count = ndimage.label(mask, np.ones((3, 3)))
    if count > 40:  # a texture
        return
    for number, (rows, columns) in enumerate(ndimage.find_objects(labels), 1):
        part = labels == number
        # Of its inner pixels: the outer ones are half of what lies around.
        inner = ndimage.binary_erosion(part)
        shade = float(luma[inner if inner.sum() >= 4 else part].mean())
        yield Part(shape, part, shade, (columns.start, rows.start, columns.stop, rows.stop))


def looks_like_eye(part: Part) -> bool:
    """Whether a part has the size, the shade and the proportions of an eye."""
    width, height = part.size
    share = part.mask.sum() / SIDE**2
    return (
        AREA[0] <= share <= AREA[1] and part.luma <= DARK and ROUND[0] <= height / width <= ROUND[1]
    )


def best_pair(parts: list[Part]) -> tuple[Part, Part] | None:
    """Choose the two parts that are most alike, as high up as they are dark; left one first."""
    found = []
    for a in parts:
        for b in parts:
            if a.middle[0] < b.middle[0] and (score := likeness(a, b)) is not None:
                found.append((score, a, b))
    if not found:
        return None
    _, a, b = max(found, key=lambda row: row[0])
    return a, b


def likeness(a: Part, b: Part) -> float | None:
    """How much two parts are a pair of eyes; None where they are not."""
    areas = sorted((a.mask.sum(), b.mask.sum()))
    across, down = b.middle - a.middle
    width = max(a.size[0], b.size[0])
    if areas[1] > ALIKE * areas[0] or abs(down) > LEVEL * across:
        return None
    if not APART[0] * width <= across <= APART[1] * width or abs(a.luma - b.luma) > 35:
        return None
    overlap = max(union_share(a.mask, b.mask, mirrored) for mirrored in (False, True))
    if overlap < OVERLAP:
        return None
    height = (a.middle[1] + b.middle[1]) / 2 / SIDE
    return overlap - (a.luma + b.luma) / 510 - height


def union_share(a: np.ndarray, b: np.ndarray, mirrored: bool) -> float:
    """Intersection over union of two masks, each cut out of its picture, one maybe mirrored."""
    a, b = (mask[mask.any(1)][:, mask.any(0)] for mask in (a, b))
    b = b[:, ::-1] if mirrored else b
    height, width = (max(sizes) for sizes in zip(a.shape, b.shape, strict=True))
    canvas = np.zeros((2, height, width), bool)
    for layer, mask in zip(canvas, (a, b), strict=True):
        top, left = (height - mask.shape[0]) // 2, (width - mask.shape[1]) // 2
        layer[top : top + mask.shape[0], left : left + mask.shape[1]] = mask
    return float((canvas[0] & canvas[1]).sum() / (canvas[0] | canvas[1]).sum())


def with_their_whites(
    pair: tuple[Part, Part], parts: list[Part], seen: list[np.ndarray]
) -> tuple[set[int], float]:
    """Numbers of the shapes that are the eyes, with their whites; and how far these reach.

    A white is a light part around an eye that is not much larger, and the other eye has one, too.
    """
    chosen, reach = {part.shape for part in pair}, REACH
    whites = []
    for eye in pair:
        near = discs(eye.middle[None], np.array([max(eye.size) / 2 * WHITE_REACH + RING]))
        around = [
            part
            for part in parts
            if part.luma > 170
            and part.mask.sum() > 0.5 * eye.mask.sum()
            and (part.mask & near).sum() >= 0.95 * part.mask.sum()
            and np.abs(part.middle - eye.middle).max() < max(eye.size) * 0.7
        ]
        whites.append(around)
    if all(whites):
        chosen |= {part.shape for around in whites for part in around}
        reach = WHITE_REACH
    return chosen, reach


def discs(middles: np.ndarray, radii: np.ndarray, side: int = SIDE) -> np.ndarray:
    """Draw discs, in pixels: bool (side, side)."""
    y, x = np.mgrid[:side, :side] + 0.5
    away = [np.hypot(x - cx, y - cy) <= r for (cx, cy), r in zip(middles, radii, strict=True)]
    return np.any(away, axis=0)
