"""How a picture was made, as text in the form of AUTOMATIC1111's web UI, which many tools read:

    <prompt, may be several lines>
    Negative prompt: <text, may be several lines>       (left out if empty)
    Steps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 1, Size: 512x512, …

In PNG files this is the text chunk `parameters`; in JPEG and WebP the EXIF field UserComment.

Beside it stand our own settings, a JSON object that begins with `{"ldm": version`, in which no
value is rounded and no space lost: the text chunk `ldm`, or the EXIF field ImageDescription.
"""

import json
import re
import warnings
from collections.abc import Mapping
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ldm.errors import ArgumentError

PROMPT, NEGATIVE = "Prompt", "Negative prompt"
NAME = r"\w[\w \-/]+"
SETTING = re.compile(rf'\s*({NAME}):\s*("(?:\\.|[^\\"])+"|[^,]*)(?:,|$)')
FEWEST_SETTINGS = 3  # a last line with fewer is taken for a line of the prompt
EXIF_IFD, USER_COMMENT = 0x8769, 0x9286  # EXIF 2.3, 4.6.5; the first 8 bytes name the encoding
IMAGE_DESCRIPTION = 0x010E  # ASCII
OURS = "ldm"  # the first key of the settings, and the name of their PNG chunk
MOST_EXIF = 65_533 - len(b"Exif\0\0")  # bytes in a JPEG: one segment


def format_parameters(parameters: Mapping[str, object]) -> str:
    """Format `Prompt`, `Negative prompt` and at least three named settings; leave out None.

    `parse_parameters` gives the same names and, as strings, the same values back. The form has two
    limits: spaces around a line of a prompt are lost, and a line of a prompt that begins with
    "Negative prompt:" starts the negative prompt.

    Raises ArgumentError for fewer than three settings, or a name that the form cannot hold.
    """
    settings = {k: str(v) for k, v in parameters.items() if v is not None}
    prompt, negative = settings.pop(PROMPT, ""), settings.pop(NEGATIVE, "")
    for name in settings:
        if not re.fullmatch(NAME, name):
            raise ArgumentError(
                f"parameters has the name {name!r}; a name is two or more letters, digits, "
                "spaces, '-', '/' or '_', and begins with a letter or digit"
            )
    if len(settings) < FEWEST_SETTINGS:
        raise ArgumentError(
            f"parameters has {len(settings)} settings ({', '.join(settings)}); with fewer than "
            f"{FEWEST_SETTINGS} they are read back as a part of the prompt"
        )
    lines = [prompt.strip()]
    if negative.strip():
        lines.append(f"{NEGATIVE}: {negative.strip()}")
    lines.append(", ".join(f"{name}: {_quote(value)}" for name, value in settings.items()))
    return "\n".join(lines)


def parse_parameters(text: str) -> dict[str, str]:
    """Read `Prompt`, `Negative prompt` ("" if there is none) and every setting, all strings."""
    *lines, last = text.strip().split("\n")
    settings = {name: _unquote(value) for name, value in SETTING.findall(last)}
    if len(SETTING.findall(last)) < FEWEST_SETTINGS:
        lines, settings = [*lines, last], {}
    lines = [line.strip() for line in lines]
    start = next((i for i, line in enumerate(lines) if line.startswith(f"{NEGATIVE}:")), len(lines))
    negative = "\n".join(lines[start:]).removeprefix(f"{NEGATIVE}:")
    prompts = {PROMPT: "\n".join(lines[:start]).strip(), NEGATIVE: negative.strip()}
    return settings | prompts


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
        info.add_text("parameters", parameters)
        if chunk is not None:
            info.add_text(OURS, chunk)
        return {"pnginfo": info}
    if file_format == "GIF":
        return {"comment": parameters.encode()}
    exif = Image.Exif()
    exif[EXIF_IFD] = {USER_COMMENT: b"UNICODE\0" + parameters.encode("utf-16-be")}
    if chunk is not None:
        exif[IMAGE_DESCRIPTION] = chunk
        if file_format == "JPEG" and len(exif.tobytes()) > MOST_EXIF:
            warnings.warn(
                "a JPEG holds 64 KiB of metadata: the exact settings are left out", stacklevel=3
            )
            del exif[IMAGE_DESCRIPTION]
    return {"exif": exif}


def extract(image: Image.Image) -> str | None:
    """Read the parameters in an opened picture; None if it has none."""
    if "parameters" in image.info:
        return str(image.info["parameters"])
    if image.format == "GIF":
        comment = image.info.get("comment")
        return comment.decode(errors="replace") if isinstance(comment, bytes) else None
    comment = image.getexif().get_ifd(EXIF_IFD).get(USER_COMMENT)
    if not isinstance(comment, bytes):
        return None
    encoding, comment = comment[:8], comment[8:]
    if encoding == b"UNICODE\0":  # big-endian as the web UI writes it, unless marked as little
        little = comment.startswith(b"\xff\xfe")
        return comment.decode("utf-16" if little else "utf-16-be", errors="replace")
    return comment.decode("utf-8", errors="replace").rstrip("\0")


def extract_settings(image: Image.Image) -> dict[str, Any] | None:
    """Read our settings in an opened picture; None if it has none.

    Raises ArgumentError if they are broken.
    """
    chunk = image.info.get(OURS)
    if chunk is None:
        described = image.getexif().get(IMAGE_DESCRIPTION)
        chunk = described if str(described).startswith(f'{{"{OURS}":') else None
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


def _quote(value: str) -> str:
    """Quote a value as JSON if it could be misread: with `,` `:` `"`, newlines or outer spaces."""
    if value == value.strip() and not any(mark in value for mark in ',:"\n'):
        return value
    return json.dumps(value, ensure_ascii=False)


def _unquote(value: str) -> str:
    if not value.startswith('"'):
        return value
    try:
        return json.loads(value)
    except ValueError:  # written by hand or by another tool: not JSON after all
        return value
