"""Finished pictures, by id: in memory up to a limit, and in the output folder if there is one."""

from __future__ import annotations

import io
import json
import logging
import threading
import warnings
from collections import OrderedDict
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.errors import LDMError
from ldm.images.files import encode_image
from ldm.images.names import picture_name
from ldm.images.text_fields import OURS, PARAMETERS
from ldm.output import save_under_free_name
from ldm.server.errors import UnknownNameError

log = logging.getLogger(__name__)
MOST_WRITTEN = 2**16  # pictures of which it is known that they are written
FORMATS = {"png": "PNG", "jpeg": "JPEG", "webp": "WEBP"}
PNG_LEVEL = 4  # half of the time that Pillow's 6 takes, and files 3 % larger


@dataclass(frozen=True, eq=False)
class Stored:
    """A picture of a job.

    Attributes:
        data: its PNG file, with its settings in it. parameters: these as A1111 writes them.
        arguments: of the request that draws it alone. settings: all of ours.
        warning: why it is not in the output folder, if it should be.
    """

    id: str
    data: bytes
    parameters: str
    arguments: dict[str, Any]
    settings: dict[str, Any]
    width: int
    height: int
    warning: str | None = None

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
    """The newest pictures; an id is that of the job and a number.

    Attributes:
        kept_bytes: of their files. unwritten: how many could not be written into the folder.
    """

    def __init__(self, most_bytes: int, folder: Path | None = None) -> None:
        self.most_bytes, self.folder = most_bytes, folder
        self._kept: OrderedDict[str, Stored] = OrderedDict()
        self.kept_bytes = self.unwritten = 0
        self._written: OrderedDict[str, None] = OrderedDict()  # names, also of those dropped
        self._lock = threading.Lock()
        self._adding = threading.Lock()

    def add(self, job_id: str, number: int, image: Image.Image, draft: bool = False) -> Stored:
        """Keep a picture, and write it into the folder; the same again is returned as it is.

        draft: whether it is kept in memory alone.
        A folder that cannot be written loses no picture: ``Stored.warning`` says so.
        """
        name = f"{job_id}-{number}"
        with self._adding:  # one that is asked for twice is written once
            with self._lock:
                if name in self._kept:
                    return self._kept[name]
            return self._add(name, image, draft)

    def _add(self, name: str, image: Image.Image, draft: bool) -> Stored:
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
        if self.folder is not None and not draft and name not in self._written:
            warning = self._write(image, stored.arguments)
            stored = replace(stored, warning=warning)
            self._written[name] = None
            if len(self._written) > MOST_WRITTEN:
                self._written.popitem(last=False)
        with self._lock:
            self._kept[name] = stored
            self.kept_bytes += len(stored.data)
            while self.kept_bytes > self.most_bytes and len(self._kept) > 1:
                _, oldest = self._kept.popitem(last=False)
                self.kept_bytes -= len(oldest.data)
        return stored

    def _write(self, image: Image.Image, arguments: dict[str, Any]) -> str | None:
        """Write a picture into the folder, under a name of letters, digits and dashes alone.

        Returns what went wrong.
        """
        assert self.folder is not None
        prompt, seed = (arguments.get(name) for name in ("prompt", "seed"))
        wanted = picture_name(str(prompt or ""), seed)
        try:
            save_under_free_name(image, self.folder / f"{wanted}.png")
        except (LDMError, OSError) as error:
            self.unwritten += 1
            log.warning("a picture is not written: %s", error)
            return "the picture could not be written into the server's output folder; see its log"
        return None

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
    if format == "png":
        options.setdefault("compress_level", PNG_LEVEL)
    image.save(content, FORMATS[format], **options)
    return content.getvalue()
