"""Pictures of one size in one NumPy file, as the commands of ``tools/`` build them."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np

from ldm.config.checking import fits
from ldm.errors import ArgumentError, DataError
from ldm.training.data.metadata import LABEL, TEXT, column, first_text, read_rows
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures
from ldm.training.foreign import kind_of_file

MOST_HEADER = 10_000  # characters of an .npy file's header, as NumPy has it


class CaptionedImages(Pictures):
    """A folder with ``images.npy``, uint8 (N,H,W,3) or grey (N,H,W), and ``metadata.jsonl``.

    Where ``options.image`` names another file, such as "control.npy", the pictures are its.

    There are N rows of metadata. A row has a ``split`` ("train" or another) and may have a
    ``caption``, a ``label`` and a ``weight``: how often it is drawn, relative to the others.
    """

    cheap = True

    def __init__(self, folder: str | Path, options: DataOptions | None = None) -> None:
        folder, options = Path(folder), options or DataOptions()
        self.folder = folder
        self.rows = read_rows(folder / "metadata.jsonl")
        self.images = read_array(folder / (options.image or "images.npy"))
        if len(self.rows) != len(self.images):
            raise ArgumentError(
                f"{folder}: {len(self.images)} images but {len(self.rows)} rows of metadata; "
                "build it again"
            )
        keys = {key: None for row in self.rows for key in row}  # in the order of the file
        text = column(keys, options.text, TEXT, str(folder))
        label = column(keys, options.label, LABEL, str(folder))
        captions = [
            first_text(row.get(text or ""), f"{folder}, row {i}") for i, row in enumerate(self.rows)
        ]
        splits = np.array([row.get("split", "train") == "train" for row in self.rows])
        super().__init__(
            str(folder),
            options,
            len(self.rows),
            captions=captions if text else None,
            labels=[row.get(label) for row in self.rows] if label else None,
            held_out=~splits if "split" in keys else None,
            weights=read_weights(folder, self.rows) if "weight" in keys else None,
        )

    def picture(self, index: int, enough: int) -> np.ndarray:
        return with_channels(self.images[index], self.options.channels)


def read_weights(folder: Path, rows: list[dict[str, Any]]) -> list[float]:
    """Return the weight of each row. Raises DataError for one that is not finite or below 0."""
    weights = []
    for number, row in enumerate(rows):
        weight = row.get("weight", 1)
        if isinstance(weight, bool) or not fits(weight, float) or not 0 <= weight < math.inf:
            raise DataError(
                f"{folder}, row {number}: the weight is {weight!r:.60}; expected a number from 0 on"
            )
        weights.append(float(weight))
    return weights


def read_array(path: Path) -> np.ndarray:
    """Map the pictures of an .npy file into memory. Raises DataError for anything else."""
    images = map_array(path)
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[3:] not in ((), (1,), (3,))
        or 0 in images.shape
    ):
        raise DataError(
            f"{path} holds {images.dtype} of shape {images.shape}; expected uint8 (N, H, W, 3) or "
            "(N, H, W), with N, H and W of at least 1"
        )
    return images


def map_array(path: Path) -> np.ndarray:
    """Map the array of an .npy file into memory, of numbers only and as long as its header says.

    Raises DataError for anything else.
    """
    try:
        if kind := kind_of_file(path):
            raise ValueError(f"it is {kind}")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # NumPy's notes on old headers
            found = np.lib.format.open_memmap(path, "r", max_header_size=MOST_HEADER)
        if not found.dtype.isnative:
            raise ValueError(f"its numbers, {found.dtype.str}, have another byte order")
        return found
    except Exception as error:  # NumPy's reader raises errors of many types on damaged headers
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{path} cannot be read ({reason:.200}); build it again") from None


def with_channels(picture: np.ndarray, channels: int | None) -> np.ndarray:
    """Convert uint8 (H,W) or (H,W,C) → (H,W,channels), RGB to grey as Pillow does."""
    if picture.ndim == 2:
        picture = picture[:, :, None]
    if channels is None or picture.shape[2] == channels:
        return picture
    if channels == 3:
        return np.repeat(picture, 3, axis=2)
    from PIL import Image

    return np.asarray(Image.fromarray(picture).convert("L"))[:, :, None]
