"""Picture files of every kind → arrays; those that cannot be read are counted and named."""

from __future__ import annotations

import contextlib
import functools
import io
import warnings
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldm.errors import ImageError
from ldm.images import load_image
from ldm.images.files import PROGRAMS, load_layer
from ldm.training.foreign import kind_of_file

SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm",
    ".jfif", ".jpe", ".pjpeg", ".pjp", ".apng", ".dib", ".tga",
)  # fmt: skip
# These depend on how Pillow was built, and on plug-ins.
OPTIONAL = (".avif", ".avifs", ".heic", ".heif", ".hif", ".jp2", ".jxl")
# What is a picture to people, and not to Pillow.
OTHERS = (".arw", ".cr2", ".cr3", ".dng", ".nef", ".orf", ".raf", ".rw2", ".exr", ".svg", ".psd")
MOST_BYTES = 1 << 30  # of a picture file
NAMED = 10  # unreadable pictures warned of one by one; after that, at each tenfold


@functools.cache
def suffixes() -> tuple[str, ...]:
    """Return the ends of the names of picture files that can be read here.

    HEIC needs pillow-heif.
    """
    with contextlib.suppress(ImportError):
        import pillow_heif

        pillow_heif.register_heif_opener()
    formats = Image.registered_extensions()
    return SUFFIXES + tuple(end for end in OPTIONAL if formats.get(end) in Image.OPEN)


@functools.cache
def safe_formats() -> tuple[str, ...]:
    """Return the names of Pillow's formats that are read, whatever a file is called."""
    suffixes()  # makes Pillow load its plug-ins
    return tuple(name for name in Image.OPEN if name not in PROGRAMS)


def check_size(size: int, name: str) -> None:
    """Raise ImageError for a picture file of more than ``MOST_BYTES`` bytes."""
    if size > MOST_BYTES:
        raise ImageError(f"{name} has {size:,} bytes; at most {MOST_BYTES:,} are read")


def open_picture(source: Path | bytes, name: str) -> Image.Image:
    """Open a picture file, or its bytes, without reading the pixels.

    Raises ImageError for a file that is no regular one, or too large.
    """
    if isinstance(source, bytes):
        return Image.open(io.BytesIO(source), formats=safe_formats())
    if kind := kind_of_file(source):
        raise ImageError(f"{name} is {kind}; expected a picture file")
    check_size(source.stat().st_size, name)
    return Image.open(source, formats=safe_formats())


def check_pixels(image: Image.Image, name: str) -> None:
    """Raise ImageError for a picture beyond Pillow's limit; it reads up to twice as many."""
    limit = Image.MAX_IMAGE_PIXELS
    if limit is not None and image.width * image.height > limit:
        raise ImageError(
            f"{name} has {image.width} × {image.height} px, more than {limit // 1_000_000} "
            "megapixels; scale it down"
        )


def unreadable_suffixes() -> tuple[str, ...]:
    """Return the ends of the names of picture files that cannot be read here."""
    return tuple(end for end in (*OPTIONAL, *OTHERS) if end not in suffixes())


def decode_picture(source: Path | bytes, name: str, channels: int, enough: int = 0) -> np.ndarray:
    """Decode a picture file, or its bytes, as ``load_image`` does: uint8 (H, W, channels).

    A JPEG is decoded at a fraction of its size where that leaves both sides ``enough`` px.
    Raises ImageError with ``name`` for what cannot be read.
    """
    picture = _decode(source, name, load_image, enough)
    if channels == 1:
        return np.asarray(picture.convert("L"))[:, :, None]
    return np.asarray(picture)


def decode_alpha(source: Path | bytes, name: str) -> np.ndarray:
    """Decode the opacity of a picture file, or of its bytes: uint8 (H, W, 1), 255 is opaque.

    Raises ImageError with ``name`` for what cannot be read.
    """
    layer = _decode(source, name, load_layer)
    if layer.mode == "RGB":
        return np.full((layer.height, layer.width, 1), 255, np.uint8)
    return np.asarray(layer.getchannel("A"))[:, :, None]


def _decode(
    source: Path | bytes,
    name: str,
    load: Callable[[Image.Image], Image.Image],
    enough: int = 0,
) -> Image.Image:
    """Open and load a picture. Raises ImageError with ``name`` for what cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd files that it does read
            with open_picture(source, name) as image:
                if enough:
                    image.draft(None, (enough, enough))
                check_pixels(image, name)
                return load(image)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture") from None
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except ImageError as error:
        raise ImageError(str(error) if name in str(error) else f"{name}: {error}") from None
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        raise ImageError(f"{name}: {str(error) or type(error).__name__}") from None


def stored_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """Read the displayed (height, width) of a picture file from its header.

    Raises ImageError where there is none.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with open_picture(source, name) as image:
                if image.format == "PNG":  # all pixels are read to find what stands behind them
                    check_pixels(image, name)
                orientation = image.getexif().get(0x0112, 1)
                width, height = image.size
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        raise ImageError(f"{name}: {str(error) or type(error).__name__}") from None
    turned = isinstance(orientation, int) and 5 <= orientation <= 8  # it lies on its side
    return (width, height) if turned else (height, width)


class Skipped:
    """The rows that could not be used, by name, each with the reason."""

    def __init__(self, data: str) -> None:
        self.data = data
        self.reasons: dict[str, str] = {}

    def add(self, name: str, reason: str) -> None:
        """Add a row, with a warning: the first few by name, later ones by their number."""
        if name in self.reasons:
            return
        self.reasons[name] = reason
        count = len(self.reasons)
        if count <= NAMED:
            warnings.warn(f"skipped a picture: {reason}", stacklevel=2)
        elif str(count).strip("0") == "1":
            warnings.warn(f"{self}", stacklevel=2)

    def __len__(self) -> int:
        return len(self.reasons)

    def __str__(self) -> str:
        first = list(self.reasons)[:NAMED]
        more = ", …" if len(self) > len(first) else ""
        return f"{self.data}: {len(self)} pictures skipped ({', '.join(first)}{more})"


class Cache:
    """Pictures ready to crop, the least recently used thrown out first."""

    def __init__(self, megabytes: int) -> None:
        self.room = self.total = megabytes * 1_000_000
        self.pictures: OrderedDict[object, np.ndarray] = OrderedDict()

    def get(self, key: object) -> np.ndarray | None:
        """Return the picture, or None if it is not in the cache."""
        if key in self.pictures:
            self.pictures.move_to_end(key)
        return self.pictures.get(key)

    def put(self, key: object, picture: np.ndarray) -> None:
        """Keep a picture, if it fits at all."""
        if key in self.pictures or picture.nbytes > self.total:
            return
        while self.room < picture.nbytes:
            self.room += self.pictures.popitem(last=False)[1].nbytes
        self.pictures[key] = picture
        self.room -= picture.nbytes
