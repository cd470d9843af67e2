"""Pictures of one size in one NumPy file, as the commands of ``tools/`` build them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ldm.errors import ArgumentError, DataError
from ldm.training.data.metadata import LABEL, TEXT, column, read_rows
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures


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
        splits = np.array([row.get("split", "train") == "train" for row in self.rows])
        super().__init__(
            str(folder),
            options,
            len(self.rows),
            captions=[row.get(text) for row in self.rows] if text else None,
            labels=[row.get(label) for row in self.rows] if label else None,
            held_out=~splits if "split" in keys else None,
            weights=[row.get("weight", 1) for row in self.rows] if "weight" in keys else None,
        )

    def picture(self, index: int, enough: int) -> np.ndarray:
        return with_channels(self.images[index], self.options.channels)


def read_array(path: Path) -> np.ndarray:
    """Map the pictures of an .npy file into memory. Raises DataError for anything else."""
    try:
        images = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DataError(f"{path} cannot be read ({error}); build the data set again") from None
    if (
        images.dtype != np.uint8
        or images.ndim not in (3, 4)
        or images.shape[3:] not in ((), (1,), (3,))
    ):
        raise DataError(
            f"{path} holds {images.dtype} of shape {images.shape}; expected uint8 (N, H, W, 3) or "
            "(N, H, W)"
        )
    return images


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
