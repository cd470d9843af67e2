"""Picture files of every kind → arrays; those that cannot be read are counted and named."""

from __future__ import annotations

import io
import warnings
from collections import OrderedDict
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from ldm.errors import ImageError
from ldm.images import load_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
NAMED = 10  # unreadable pictures warned of one by one; after that, at each tenfold


def decode_picture(source: Path | bytes, name: str, channels: int, enough: int = 0) -> np.ndarray:
    """Decode a picture file, or its bytes, as ``load_image`` does: uint8 (H, W, channels).

    A JPEG is decoded at a fraction of its size where that leaves both sides ``enough`` px.
    Raises ImageError with ``name`` for what cannot be read.
    """
    image = None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's notes on odd files that it does read
            image = Image.open(io.BytesIO(source) if isinstance(source, bytes) else source)
            with image:
                if enough:
                    image.draft(None, (enough, enough))
                picture = load_image(image)
    except UnidentifiedImageError:
        raise ImageError(f"{name} is not a picture") from None
    except FileNotFoundError:
        raise ImageError(f"{name} does not exist") from None
    except (ImageError, OSError, Image.DecompressionBombError) as error:
        raise ImageError(f"{name}: {error}") from None
    if channels == 1:
        return np.asarray(picture.convert("L"))[:, :, None]
    return np.asarray(picture)


def stored_size(source: Path | bytes, name: str) -> tuple[int, int]:
    """Read the displayed (height, width) of a picture file from its header.

    Raises ImageError where there is none.
    """
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source) as image:
            turned = image.getexif().get(0x0112, 1) >= 5  # EXIF orientation: lying on its side
            width, height = image.size
    except Exception as error:  # Pillow's readers raise errors of many types on damaged files
        raise ImageError(f"{name}: {error}") from None
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
