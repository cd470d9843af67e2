"""A picture that knows how it was made, and writes it into its file."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

from PIL import Image

from ldm.images.text_fields import OURS, PARAMETERS, embed

FILE_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP"}
ANIMATIONS = FILE_FORMATS | {".gif": "GIF"}  # which has 256 colours a frame: none for pictures
QUALITY = {"JPEG": {"quality": 95}, "WEBP": {"quality": 95}}
# Arguments of Pillow's save that hold texts, in place of ours.
TEXTS = {"PNG": "pnginfo", "JPEG": "exif", "WEBP": "exif", "GIF": "comment"}

File = str | bytes | os.PathLike[str] | os.PathLike[bytes] | IO[bytes]


class Picture(Image.Image):
    """A PIL image whose ``save`` writes its settings, as ``ldm-generate`` does.

    They stand in ``info``, under the names that an opened PNG has them: "parameters" is the text
    that A1111's web UI reads, "ldm" our settings as JSON. ``del picture.info["parameters"]`` drops
    both. A copy keeps them; a picture that is resized, cropped or filtered is a plain PIL image, as
    it is not what the settings draw.
    """

    @classmethod
    def of(cls, image: Image.Image, parameters: str, settings: Mapping[str, Any]) -> Picture:
        """Make one of an image's pixels and what ``text_fields.embed`` takes."""
        picture = cls()
        picture.__setstate__(image.__getstate__())  # as pickle does: Pillow has no other public way
        picture.info = {**image.info, PARAMETERS: parameters, OURS: json.dumps(dict(settings))}
        return picture

    def copy(self) -> Picture:
        """Return a copy, with its settings."""
        picture = type(self)()
        picture.__setstate__(self.__getstate__())
        picture.info = dict(self.info)
        return picture

    def __copy__(self) -> Picture:
        return self.copy()

    def save(self, fp: File, format: str | None = None, **params: Any) -> None:
        """Save as ``PIL.Image.Image.save``, with the settings in a PNG, JPEG, WebP or GIF file.

        JPEG and WebP files have the quality 95 unless ``quality`` is given. ``pnginfo``, ``exif``
        or ``comment`` stand in place of the settings.
        """
        kind = format or file_format(fp)
        kind = kind.upper() if kind else ""
        texts = TEXTS.get(kind)
        if texts:
            params = QUALITY.get(kind, {}) | params
            parameters = self.info.get(PARAMETERS)
            if isinstance(parameters, str) and texts not in params:
                params |= embed(parameters, kind, json.loads(self.info.get(OURS, "null")))
        super().save(fp, format, **params)


def file_format(fp: object) -> str | None:
    """Return the format that the name of a file says; None for no name or another format."""
    name = fp if isinstance(fp, str | bytes | os.PathLike) else getattr(fp, "name", None)
    if not isinstance(name, str | bytes | os.PathLike):
        return None
    return ANIMATIONS.get(Path(os.fsdecode(name)).suffix.lower())
