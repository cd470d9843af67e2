"""One name for a data set, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, DataError
from ldm.training.data.arrays import CaptionedImages
from ldm.training.data.idx import IDXImages, find_idx
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Dataset


def open_data(name: str, options: dict[str, Any] | None = None) -> Dataset:
    """Open a data set; ``options`` is a config's table ``[options.data]`` (see options.py).

    A name is one of
        a folder with images.npy and metadata.jsonl (arrays.py),
        a folder with MNIST's IDX files (idx.py).

    Raises ArgumentError for a name or an option that cannot work, DataError for a set that is
    empty or broken.
    """
    read = DataOptions.from_dict(options or {})
    folder = Path(name)
    if not folder.exists():
        raise ArgumentError(f"{name} does not exist; the README tells how to get data sets")
    if (folder / "images.npy").exists():
        return CaptionedImages(folder, read)
    if find_idx(folder, "train", "images-idx3"):
        return IDXImages(folder, read)
    raise DataError(f"{name} is not a data set of a known form; see the README")
