"""A folder of picture files, named and arranged as `datasets`' imagefolder reads it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ldm.errors import DataError
from ldm.training.data.encoded import EncodedImages, columns_if_any
from ldm.training.data.metadata import LABEL, TEXT, column, first_text, read_rows
from ldm.training.data.options import DataOptions
from ldm.training.data.reading import SUFFIXES

HELD_OUT = ("test", "validation", "val", "held_out")
METADATA = "metadata.jsonl"


def list_pictures(folder: Path) -> list[str]:
    """List the picture files in a folder and below: sorted relative paths, no hidden files."""
    found = []
    for base, folders, files in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        inside = Path(base).relative_to(folder).as_posix()
        for name in files:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                found.append(name if inside == "." else f"{inside}/{name}")
    return sorted(found)


class ImageFolder(EncodedImages):
    """Pictures of any size; each row is a file.

    With ``metadata.jsonl``, rows are {"file_name": …, "text" or "caption": …, "label": …}, the name
    seen from that file. Without it, pictures in two or more subfolders are labelled by them, and
    others have neither captions nor labels. Where there are subfolders ``train`` and ``test`` (or
    ``validation``, ``val``, ``held_out``), each is read so, and the second is held out.
    """

    def __init__(self, folder: str | Path, options: DataOptions | None = None) -> None:
        folder, options = Path(folder), options or DataOptions()
        files = list_pictures(folder)
        if not files:
            kinds = ", ".join(name[1:] for name in SUFFIXES)
            raise DataError(f"{folder} has no pictures (files of {kinds}); check data")
        self.files: list[Path] = []
        captions: list[str | None] = []
        labels: list[int | str | None] = []
        held_out: list[bool] = []
        for prefix, is_held_out in find_splits(folder):
            inside = [name.removeprefix(prefix) for name in files if name.startswith(prefix)]
            for name, text, label in read_part(folder / prefix, inside, options):
                self.files.append(folder / prefix / name)
                captions.append(text)
                labels.append(label)
                held_out.append(is_held_out)
        known_captions, known_labels = columns_if_any(captions, labels)
        super().__init__(
            str(folder),
            options,
            len(self.files),
            captions=known_captions,
            labels=known_labels,
            held_out=np.array(held_out) if any(held_out) else None,
        )

    def encoded(self, index: int) -> Path:
        return self.files[index]

    def row_name(self, index: int) -> str:
        return str(self.files[index])


def find_splits(folder: Path) -> list[tuple[str, bool]]:
    """Return the prefix of the names in each split of a folder, and whether it is held out."""
    held_out = [name for name in HELD_OUT if (folder / name).is_dir()]
    if (folder / "train").is_dir() and held_out:
        return [("train/", False), *((f"{name}/", True) for name in held_out)]
    return [("", False)]


FolderRow = tuple[str, str | None, int | str | None]  # file, caption, label


def read_part(folder: Path, files: Sequence[str], options: DataOptions) -> list[FolderRow]:
    """Read the rows of one split: from its metadata, or from its subfolders."""
    if (folder / METADATA).exists():
        return described(folder / METADATA, read_rows(folder / METADATA), files, options)
    parents = {PurePosixPath(name).parts[0] for name in files if "/" in name}
    if len(parents) > 1 and all("/" in name for name in files):
        return [(name, None, name.split("/")[0]) for name in files]
    return [(name, None, None) for name in files]


def described(
    source: Path, rows: list[dict[str, Any]], files: Sequence[str], options: DataOptions
) -> list[FolderRow]:
    """Read the rows of a metadata file, except those whose picture is missing, with a warning."""
    keys = {key: None for row in rows for key in row}
    text = column(keys, options.text, TEXT, str(source))
    label = column(keys, options.label, LABEL, str(source))
    known, found, missing = set(files), [], []
    for number, row in enumerate(rows):
        if not isinstance(row.get("file_name"), str):
            raise DataError(f"{source}, row {number} has no file_name; give each row one")
        name = os.path.normpath(row["file_name"]).replace(os.sep, "/")
        if name in known:
            caption = first_text(row.get(text), f"{source}, row {number}") if text else None
            found.append((name, caption, row.get(label) if label else None))
        else:
            missing.append(row["file_name"])
    if not found:
        raise DataError(
            f"{source} names no picture that is there ({len(missing)} rows, the first "
            f"{missing[0] if missing else 'is missing'}); file_name is a path from its folder"
        )
    if missing:
        names = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        warnings.warn(
            f"{source} names {len(missing)} pictures that are not there, skipped: {names}",
            stacklevel=2,
        )
    left_over = len(known - {name for name, _, _ in found})
    if left_over:
        warnings.warn(f"{source} has no row for {left_over} pictures, left out", stacklevel=2)
    return found
