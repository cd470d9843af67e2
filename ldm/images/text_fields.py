"""The texts in a picture's file, by the names of their fields.

`parameters` is the form of the web UI (see ``ldm.images.metadata``): a text chunk in PNG files, the
EXIF field UserComment in JPEG, WebP and AVIF, the comment in GIF. Beside it stand our own settings,
a JSON object that begins with `{"ldm": version`, in which no value is rounded and no space lost:
the text chunk `ldm`, or the EXIF field ImageDescription.
"""

from __future__ import annotations

import html
import json
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo, iTXt

from ldm.errors import ArgumentError

OURS = "ldm"  # the first key of the settings, and the name of their PNG chunk
PARAMETERS = "parameters"
POSTPROCESS = "postprocess"  # the key of what was done to the picture that the settings draw
COMMENT = "UserComment"
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # EXIF 2.3, 4.6.5; the first 8 bytes name the encoding
UNICODE = b"UNICODE\0"  # the web UI writes it big-endian
IMAGE_DESCRIPTION = 0x010E  # ASCII
EXIF_NAMES = {
    IMAGE_DESCRIPTION: "ImageDescription",
    0x010F: "Make",
    0x0110: "Model",
    0x0131: "Software",
    USER_COMMENT: COMMENT,  # Fooocus writes it beside the others
}
MOST_EXIF = 65_533 - len(b"Exif\0\0")  # bytes in a JPEG: one segment


def embed(
    parameters: str, file_format: str, settings: Mapping[str, object] | None = None
) -> dict[str, Any]:
    """Make the arguments with which Pillow's `save` writes both into a "PNG", "JPEG" or "WEBP".

    A "GIF" holds only the parameters, in its comment, where the web UI looks for them.
    Warns if a JPEG has no room for the settings: the parameters are what other programs read.
    """
    chunk = None if settings is None else json.dumps({OURS: None} | dict(settings))
    if file_format == "PNG":
        info = PngInfo()
        info.add_text(PARAMETERS, parameters)
        if chunk is not None:
            info.add_text(OURS, chunk)
        return {"pnginfo": info}
    if file_format == "GIF":
        return {"comment": parameters.encode()}
    exif = Image.Exif()
    exif[EXIF_IFD] = {USER_COMMENT: UNICODE + parameters.encode("utf-16-be")}
    if chunk is not None:
        exif[IMAGE_DESCRIPTION] = chunk
        if file_format == "JPEG" and len(exif.tobytes()) > MOST_EXIF:
            warnings.warn(
                "a JPEG holds 64 KiB of metadata: the exact settings are left out", stacklevel=3
            )
            del exif[IMAGE_DESCRIPTION]
    return {"exif": exif}


def text_fields(image: Image.Image) -> dict[str, str]:
    """Read all texts in an opened picture whose pixels are loaded."""
    found: dict[str, str] = {}
    for name, value in image.info.items():
        if isinstance(value, iTXt):
            found[str(name)] = str(value)
        elif isinstance(value, str):
            found[str(name)] = _unmangled(value)
    comment = image.info.get("comment")
    if isinstance(comment, bytes):
        found["comment"] = comment.decode(errors="replace")
    exif = image.getexif()
    for tag, name in EXIF_NAMES.items():
        if isinstance(value := exif.get(tag), str | bytes):
            found.setdefault(name, _decoded(value, tag))
    if isinstance(value := exif.get_ifd(EXIF_IFD).get(USER_COMMENT), str | bytes):
        found[COMMENT] = _decoded(value, USER_COMMENT)
    if (value := _xmp_comment(image)) is not None:
        found.setdefault(COMMENT, value)
    return found


def parameters_of(fields: Mapping[str, str]) -> str | None:
    """Return what stands where the web UI writes its text; None for nothing."""
    return next((fields[name] for name in (PARAMETERS, COMMENT, "comment") if name in fields), None)


def settings_of(fields: Mapping[str, str]) -> dict[str, Any] | None:
    """Return our settings; None if there are none. Raises ArgumentError if they are broken."""
    chunk = fields.get(OURS)
    if chunk is None:
        described = fields.get(EXIF_NAMES[IMAGE_DESCRIPTION], "")
        chunk = described if described.startswith(f'{{"{OURS}":') else None
    if chunk is None:
        return None
    try:
        settings = json.loads(chunk)
    except (ValueError, TypeError, RecursionError) as error:
        raise ArgumentError(f"its settings are not JSON ({error})") from None
    if not isinstance(settings, dict) or OURS not in settings:
        raise ArgumentError(
            f"its settings are {chunk[:40]!r}…, no object that begins with {OURS!r}"
        )
    return settings


def decode_comment(comment: bytes) -> str:
    """Decode an EXIF UserComment, whose first 8 bytes name the encoding, or do not."""
    encoding, text = comment[:8], comment[8:]
    if encoding == b"JIS\0\0\0\0\0":
        return text.decode("iso2022_jp", errors="replace").rstrip("\0")
    if encoding not in (UNICODE, b"ASCII\0\0\0", bytes(8)):
        text = comment
    return _decode(text, other="utf-16-be" if encoding == UNICODE else "latin-1")


def _decode(text: bytes, other: str = "latin-1") -> str:
    """Decode UTF-8, or UTF-16 of either byte order with or without a mark, or else ``other``."""
    if text.startswith((b"\xff\xfe", b"\xfe\xff")):
        return text.decode("utf-16", errors="replace").rstrip("\0")
    text = text.removeprefix(b"\xef\xbb\xbf")
    high, low = text[0::2].count(0), text[1::2].count(0)  # the zeros of ASCII in UTF-16
    bare = text.rstrip(b"\0")
    if high + low > len(text) - len(bare):
        order = "utf-16-le" if low > high else "utf-16-be"
        return text.decode(order, errors="replace").rstrip("\0")
    try:
        return bare.decode()
    except UnicodeDecodeError:
        return text.decode(other, errors="replace").rstrip("\0")


def _decoded(value: str | bytes, tag: int) -> str:
    if isinstance(value, str):
        return _unmangled(value).rstrip("\0")
    return decode_comment(value) if tag == USER_COMMENT else _decode(value)


def _unmangled(text: str) -> str:
    """Read UTF-8 in a field that is Latin-1 by its standard, as stable-diffusion.cpp writes it."""
    try:
        return text.encode("latin-1").decode()
    except UnicodeError:
        return text


def _xmp_comment(image: Image.Image) -> str | None:
    """Find the JSON that Draw Things writes into the UserComment of XMP."""
    xmp = image.info.get("xmp") or image.info.get("XML:com.adobe.xmp")
    text = xmp.decode(errors="replace") if isinstance(xmp, bytes) else str(xmp or "")
    start = text.find("exif:UserComment")
    if start < 0:
        return None
    start = text.find("{", start)
    end = text.find("<", start)
    return html.unescape(text[start:end]) if 0 <= start < end else None
