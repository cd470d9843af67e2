"""Small pictures with metadata as other programs write it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

EXIF_IFD, USER_COMMENT = 0x8769, 0x9286


def png(folder: Path, **chunks: object) -> Path:
    """Write a PNG with text chunks; what is no text is written as JSON."""
    info = PngInfo()
    for name, value in chunks.items():
        info.add_text(name.replace("_dash_", "-"), as_text(value))
    Image.new("RGB", (8, 8), "red").save(folder / "a.png", pnginfo=info)
    return folder / "a.png"


def exif(folder: Path, comment: object, name: str = "a.jpg", **tags: Any) -> Path:
    """Write a picture with an EXIF UserComment: bytes as they are, else as the web UI does."""
    if not isinstance(comment, bytes):
        comment = b"UNICODE\0" + as_text(comment).encode("utf-16-be")
    data = Image.Exif()
    data[EXIF_IFD] = {USER_COMMENT: comment}
    for tag, value in tags.items():
        data[int(tag.removeprefix("tag"))] = value
    Image.new("RGB", (8, 8), "red").save(folder / name, exif=data)
    return folder / name


def as_text(value: object) -> str:
    """Return a text as it is, anything else as JSON."""
    return value if isinstance(value, str) else json.dumps(value)
