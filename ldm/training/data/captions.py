"""Captions in files beside the pictures, as most trainers use them: a.txt or a.caption of a.png."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import DataError
from ldm.training.data.listing import Listing
from ldm.training.data.metadata import MOST_CAPTION
from ldm.training.foreign import text_lines


def read_captions(folder: Path, files: Listing, pictures: Sequence[str]) -> list[str | None]:
    """Read the caption of each picture; None for one without a file.

    As sd-scripts does, the first line counts. Raises DataError for a file that is no text.
    """
    captions, longer = list[str | None](), list[str]()
    for picture in pictures:
        name = files.caption_of(picture)
        lines = [] if name is None else read_lines(folder / name)
        captions.append(None if name is None else lines[0] if lines else "")
        if len(lines) > 1:
            longer.append(str(folder / str(name)))
    if longer:
        warnings.warn(
            f"{len(longer)} caption files have several lines, of which the first counts (such as "
            f"{longer[0]})",
            stacklevel=2,
        )
    return captions


def read_lines(path: Path) -> list[str]:
    """Read the lines of a small text, without empty ones."""
    try:
        if path.stat().st_size > MOST_CAPTION:
            raise DataError(f"{path} is larger than a caption, {MOST_CAPTION:,} bytes; check data")
        return [line.strip() for line in text_lines(path) if line.strip()]
    except ValueError as error:
        raise DataError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from None
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror or error})") from None
