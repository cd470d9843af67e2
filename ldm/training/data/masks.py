"""Masks that weigh the loss on each picture: white counts, black does not, grey in part.

As in sd-scripts (kohya; docs/masked_loss_README.md) and OneTrainer.
"""

from __future__ import annotations

import posixpath
import warnings
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import ArgumentError, DataError
from ldm.training.data.crops import Size
from ldm.training.data.encoded import EncodedImages
from ldm.training.data.folders import ImageFolder
from ldm.training.data.listing import MASK_LABEL, list_files, mask_folder
from ldm.training.data.open import open_data
from ldm.training.data.options import DataOptions
from ldm.training.data.pictures import Pictures
from ldm.training.data.reading import decode_alpha

ALPHA = "alpha"
PROPORTIONS = 0.02  # the part by which a mask's may differ from its picture's, from rounding


class Masks:
    """The masks of a data set's pictures, resized and cropped as these are.

    Args:
        data: the pictures.
        masks: those of their rows, grey.
    """

    def __init__(self, data: Pictures, masks: Pictures) -> None:
        self.data, self.masks = data, masks

    def readable(self, rows: Tensor, size: Size) -> Tensor:
        """Return those rows whose masks can be read; warns of the others.

        Raises DataError for a mask that does not fit its picture.
        """
        for row in rows.tolist():
            if not self.data.cheap:
                self._check(row)
        return self.masks.readable(rows, size)

    def at(self, rows: Tensor, size: Size, scale: int) -> Tensor:
        """Return masks at the size of latents: (B,) → (B, 1, h, w) in [0, 1], means of areas."""
        return F.avg_pool2d(self.masks.pixels(rows, size) / 2 + 0.5, scale)

    def _check(self, row: int) -> None:
        options = self.data.options
        (height, width), (own_height, own_width) = self.data.shape(row), self.masks.shape(row)
        if (height, width) == (own_height, own_width):
            return
        ratio = own_width * height / (own_height * width)
        if options.pad or options.resize == 0 or abs(ratio - 1) > PROPORTIONS:
            raise DataError(
                f"the mask {self.masks.row_name(row)} has {own_width} × {own_height} px, but its "
                f"picture {self.data.row_name(row)} has {width} × {height}; give it the same size"
            )


def open_masks(data: Pictures) -> Masks | None:
    """Open the masks that ``data.mask`` names; None without it.

    It is one of
        "alpha": the pictures' own transparency,
        "masklabel": a-masklabel.png beside a.png, as OneTrainer has them,
        a folder with pictures of the same names, as sd-scripts' ``conditioning_data_dir``,
        the name of a column, or of an .npy file beside images.npy.

    Pictures without a file of theirs count as a whole, with a warning; opaque ones, too.
    Raises ArgumentError where there are no such masks.
    """
    name = data.options.mask
    if name is None:
        return None
    options = replace(
        data.options, mask=None, channels=1, crop="centre", flip=False, small="enlarge", held_out=0
    )
    if name == ALPHA:
        if not isinstance(data, EncodedImages):
            raise ArgumentError(f'data.mask is "alpha", but pictures of {data.name} have none')
        return Masks(data, AlphaMasks(data, options))
    folder = mask_folder(Path(data.name), name)
    if folder is None and name != MASK_LABEL[1:]:
        return Masks(data, column_of_masks(data, name, options))
    if not isinstance(data, ImageFolder):
        raise ArgumentError(f"data.mask is {name!r}, which is for folders of picture files")
    files = beside(data) if folder is None else of_same_names(data, folder)
    missing = [i for i, file in enumerate(files) if file is None]
    if len(missing) == len(files):
        where = "beside the pictures" if folder is None else f"of the pictures' names in {folder}"
        raise ArgumentError(f"data.mask is {name!r}, but there is no mask {where}")
    if missing:
        warnings.warn(
            f"{len(missing)} of {len(files)} pictures of {data.name} have no mask and count as a "
            f"whole (such as {data.row_name(missing[0])})",
            stacklevel=3,
        )
    return Masks(data, FileMasks(data, files, options))


def column_of_masks(data: Pictures, name: str, options: DataOptions) -> Pictures:
    """Open the data set once more, by the column of its masks."""
    found = open_data(data.name, asdict(replace(options, image=name)), prompt="")
    assert isinstance(found, Pictures)  # as ``data`` is
    if len(found) != len(data):
        raise ArgumentError(
            f"{data.name} has {len(data)} pictures, but {len(found)} masks ({name}); give each row "
            "one"
        )
    return found


class AlphaMasks(EncodedImages):
    """The opacity of each picture."""

    def __init__(self, data: EncodedImages, options: DataOptions) -> None:
        super().__init__(data.name, options, len(data))
        self.data = data

    def encoded(self, index: int) -> Path | bytes:
        return self.data.encoded(index)

    def picture(self, index: int, enough: int) -> np.ndarray:
        return decode_alpha(self.encoded(index), self.row_name(index))

    def row_name(self, index: int) -> str:
        return self.data.row_name(index)


class FileMasks(EncodedImages):
    """A file for each picture; None is white."""

    def __init__(self, data: Pictures, files: Sequence[Path | None], options: DataOptions) -> None:
        super().__init__(data.name, options, len(files))
        self.data, self.files = data, files

    def encoded(self, index: int) -> Path:
        file = self.files[index]
        assert file is not None  # see picture and shape
        return file

    def picture(self, index: int, enough: int) -> np.ndarray:
        if self.files[index] is None:
            return np.full((*self.data.shape(index), 1), 255, np.uint8)
        return super().picture(index, enough)

    def shape(self, index: int) -> Size:
        if self.files[index] is None:
            return self.data.shape(index)
        return super().shape(index)

    def row_name(self, index: int) -> str:
        return str(self.files[index] or self.data.row_name(index))


def beside(data: ImageFolder) -> list[Path | None]:
    """Return the file of each picture's mask as OneTrainer names them."""
    files = [file.with_name(f"{file.stem}{MASK_LABEL}.png") for file in data.files]
    return [file if file.is_file() else None for file in files]


def of_same_names(data: ImageFolder, folder: Path) -> list[Path | None]:
    """Return the file in a folder whose path, or else name, is that of each picture's."""
    known: dict[str, Path] = {}
    for name in list_files(folder).pictures:
        for key in (posixpath.splitext(name)[0], posixpath.splitext(posixpath.basename(name))[0]):
            known.setdefault(key, folder / name)
    own, found = Path(data.name), list[Path | None]()
    for file in data.files:
        inside = file.relative_to(own) if file.is_relative_to(own) else file
        key = inside.with_suffix("").as_posix()
        found.append(known.get(key) or known.get(file.stem))
    return found
