"""Finished pictures, by id: in memory up to a limit, and in the output folder if there is one."""

from __future__ import annotations

import io
import json
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.images.files import encode_image
from ldm.images.names import free_names, picture_name
from ldm.images.text_fields import OURS, PARAMETERS
from ldm.output import save_under_free_name
from ldm.server.errors import UnknownNameError

FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}


@dataclass(frozen=True, eq=False)
class Stored:
    """A picture of a job.

    Attributes:
        data: its PNG file, with its settings in it. parameters: these as A1111 writes them.
        arguments: of the request that draws it alone. settings: all of ours.
    """

    id: str
    data: bytes
    parameters: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    width: int
    height: int

    def file(self, format: str, quality: int | None = None) -> bytes:
        """Return it as a file of one of ``FORMATS``, with its settings. quality: in [1, 100]."""
        if format == "png":
            return self.data
        options = {} if quality is None else {"quality": quality}
        with Image.open(io.BytesIO(self.data)) as image, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # settings that a JPEG has no room for
            return encode_image(
                image.convert("RGB"), FORMATS[format], self.parameters, self.settings, **options
            )


class Pictures:
    """The newest pictures; an id is that of the job and a number."""

    def __init__(self, most_bytes: int, folder: Path | None = None) -> None:
        self.most_bytes, self.folder = most_bytes, folder
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()

    def add(self, job_id: str, number: int, image: Image.Image, draft: bool = False) -> Stored:
        """Keep a picture, and write it into the folder; the same again is returned as it is.

        draft: whether it is kept in memory alone.

        Raises ImageError for a folder that cannot be written.
        """
        name = f"{job_id}-{number}"
        with self._lock:
            if name in self._kept:
                return self._kept[name]
        settings = json.loads(image.info.get(OURS, "null")) or {}
        stored = Stored(
            name,
            encode(image),
            image.info.get(PARAMETERS, ""),
            settings.get("arguments", {}),
            settings,
            image.width,
            image.height,
        )
        if self.folder is not None and not draft:
            prompt, seed = (stored.arguments.get(name) for name in ("prompt", "seed"))
            wanted = picture_name(str(prompt or ""), seed)
            save_under_free_name(image, next(free_names(self.folder / f"{wanted}.png")))
        with self._lock:
            self._kept[name] = stored
            self._bytes += len(stored.data)
            while self._bytes > self.most_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self._bytes -= len(oldest.data)
        return stored

    def get(self, name: str) -> Stored:
        """Return a picture. Raises UnknownNameError if it is not, or no longer, there."""
        with self._lock:
            if name not in self._kept:
                raise UnknownNameError(
                    f"there is no picture {name!r:.60}; this server keeps the newest ones only",
                    "id",
                )
            return self._kept[name]


def encode(image: Image.Image, format: str = "png", **options: Any) -> bytes:
    """Return a picture as a file, with its settings. format: one of ``FORMATS``."""
    content = io.BytesIO()
    image.save(content, FORMATS[format], **options)
    return content.getvalue()
