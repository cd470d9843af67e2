"""Pictures that clients send: decoded in memory, and only after their size is known."""

from __future__ import annotations

import base64
import binascii
import io

from PIL import Image, UnidentifiedImageError

from ldm.images.files import open_content
from ldm.server.errors import ServerError

SHOWN = 40  # letters of what is no picture


def decode_base64(text: str, argument: str) -> bytes:
    """Return the bytes of base64, or of a data URL. Raises ServerError for another text."""
    if not isinstance(text, str):
        raise ServerError(f"{argument} is of the type {type(text).__name__}; send base64", argument)
    content = text.partition(",")[2] if text.startswith("data:") else text
    if content.startswith(("http:", "https:", "file:")):
        raise ServerError(f"{argument} is an address; send the picture itself", argument)
    try:
        return base64.b64decode(content, validate=False)
    except (binascii.Error, ValueError):
        raise ServerError(f"{argument} is no base64: {text[:SHOWN]!r}…", argument) from None


def read_upload(content: str | bytes, argument: str, most_pixels: int) -> Image.Image:
    """Decode a picture: base64, a data URL, or a file's bytes; with its texts in ``info``.

    Raises ServerError for what is no picture or has more pixels than ``most_pixels``.
    """
    data = decode_base64(content, argument) if isinstance(content, str) else content
    try:
        with open_content(io.BytesIO(data)) as image:
            width, height = image.size
            if width * height > most_pixels:
                raise ServerError(
                    f"{argument} has {width}x{height} pixels; this server reads up to "
                    f"{most_pixels:,}",
                    argument,
                    413,
                )
            image.load()
            return image.copy()
    except ServerError:
        raise
    except UnidentifiedImageError:
        raise ServerError(
            f"{argument} is no picture, or of a format that is not read", argument
        ) from None
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise ServerError(
            f"{argument} is no picture that can be read ({error})", argument
        ) from None
