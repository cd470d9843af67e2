"""One name for a data set, whatever it is stored as."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, DataError, LDMError
from ldm.training.data.arrays import CaptionedImages
from ldm.training.data.dataset import Dataset
from ldm.training.data.folders import ImageFolder
from ldm.training.data.idx import IDXImages, find_idx
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures
from ldm.training.data.shards import ShardImages, ShardSource, find_shards
from ldm.training.data.stream import Source, Stream
from ldm.training.data.tables import HUB, TableImages, TableSource, is_table
from ldm.training.foreign import check_defaults, kind_of_file


def open_data(
    name: str,
    options: dict[str, Any] | None = None,
    prompt: str | None = None,
    masks: bool = False,
) -> Dataset:
    """Open a data set; ``options`` is a config's table ``[options.data]`` (see options.py).

    prompt: the caption of pictures without one. masks: whether ``data.mask`` is of use.

    A name is one of
        a folder with images.npy and metadata.jsonl (arrays.py),
        a folder with MNIST's IDX files (idx.py),
        a folder of pictures, with metadata.jsonl or .csv, caption files, sd-scripts' subfolders
            or one per class, or none of these (folders.py),
        a folder, a file or a pattern of WebDataset shards, such as "shards/*.tar" (shards.py),
        a .parquet file, a folder of them, or one that `datasets` has saved (tables.py),
        "hub:user/set" or "hub:user/set:config", a set of the Hugging Face hub (tables.py).

    With ``options.streaming``, shards and sets of `datasets` are read in order (stream.py).

    Raises ArgumentError for a name or an option that cannot work, DataError for a set that is
    empty or broken.
    """
    check_defaults()
    read = DataOptions.from_dict(options or {})
    if read.mask and not masks:
        raise ArgumentError(
            f"data.mask is {read.mask!r}, but masks weigh the loss of latents only; leave it out"
        )
    try:
        data = _open(name, read)
    except (LDMError, KeyboardInterrupt):
        raise
    except (
        OSError,
        ValueError,
        MemoryError,
        RecursionError,
    ) as error:  # such as a name that no file can have
        reason = getattr(error, "strerror", None) or str(error) or "not enough memory"
        raise DataError(f"{name!r:.200} cannot be opened ({reason})") from error
    if isinstance(data, Pictures):
        if prompt is not None:
            data.caption_by_default(prompt)
        data.check_captions()
    return data


def _open(name: str, options: DataOptions) -> Dataset:
    if options.streaming:
        return Stream(name, options, _source(name, options))
    if name.startswith(HUB):
        return TableImages(name, options)
    if find_shards(name):
        return ShardImages(name, options)
    folder = Path(name)
    if not folder.exists():
        raise ArgumentError(
            f"{name} does not exist; the README tells how to get data sets, and "
            f'"{HUB}user/set" names one of the Hugging Face hub'
        )
    if (folder / "images.npy").exists():
        return CaptionedImages(folder, options)
    if find_idx(folder, "train", "images-idx3") or find_idx(folder, "train", "labels-idx1"):
        return IDXImages(folder, options)
    if is_table(folder):
        return TableImages(name, options)
    if (kind := kind_of_file(folder)) not in (None, "a folder"):
        raise DataError(f"{name} is {kind}; expected .parquet, .tar or a folder")
    if folder.is_file():
        raise DataError(f"{name} is a file of no known kind; expected .parquet, .tar or a folder")
    return ImageFolder(folder, options)


def _source(name: str, options: DataOptions) -> Source:
    if find_shards(name):
        return ShardSource(name, options)
    if name.startswith(HUB) or is_table(Path(name)):
        return TableSource(name, options)
    raise ArgumentError(
        f"{name} cannot be streamed: it is neither shards (.tar), parquet nor a set of the hub "
        f'("{HUB}user/set"); leave data.streaming out'
    )
