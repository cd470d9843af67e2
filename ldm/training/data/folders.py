"""A folder of picture files, arranged as `datasets`' imagefolder or sd-scripts (kohya) reads it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from ldm.errors import ArgumentError, DataError
from ldm.training.data.captions import read_captions
from ldm.training.data.encoded import EncodedImages, columns_if_any
from ldm.training.data.file_names import FileNames
from ldm.training.data.listing import METADATA, Listing, identity, list_files, without_masks
from ldm.training.data.metadata import (
    FILE,
    LABEL,
    TEXT,
    as_label,
    column,
    first_text,
    read_rows,
)
from ldm.training.data.options import DataOptions
from ldm.training.data.reading import suffixes

HELD_OUT = ("test", "validation", "val", "held_out")
# A folder of sd-scripts: how often its pictures count, and what they show. Four digits are years.
CONCEPT = re.compile(r"(\d{1,3})_(.*)")


@dataclass(frozen=True)
class FolderRow:
    """A picture of a folder."""

    file: str  # as seen from the folder, or absolute
    caption: str | None = None
    label: int | str | None = None
    repeats: int = 1
    concept: str | None = None  # the caption of a picture without one


class ImageFolder(EncodedImages):
    """Pictures of any size; each row is a file.

    With ``metadata.jsonl`` or ``.csv``, rows are {"file_name": …, "text" or "caption": …, "label":
    …}, the name seen from that file. Without it, the captions are in files beside the pictures
    (a.txt or a.caption of a.png), and

    - in folders such as ``10_sks dog``, as sd-scripts has them, pictures count so many times, and
      those without a caption have the rest of the name;
    - in two or more other subfolders, pictures are labelled by them.

    Where there are subfolders ``train`` and ``test`` (or ``validation``, ``val``, ``held_out``),
    each is read so, and the second is held out. A picture with several names or rows is held out
    under all of them.
    """

    def __init__(self, folder: str | Path, options: DataOptions | None = None) -> None:
        folder, options = Path(folder), options or DataOptions()
        listing = list_files(folder)
        warn_of_unreadable(folder, listing.unreadable)
        listing.pictures = without_masks(folder, listing.pictures, options.mask)
        check_prepared(folder, listing.pictures)
        if not listing.pictures and not listing.metadata:
            kinds = ", ".join(name[1:] for name in suffixes())
            raise DataError(f"{folder} has no pictures (files of {kinds}); check data")
        rows: list[FolderRow] = []
        held_out: list[bool] = []
        for prefix, is_held_out in find_splits(folder):
            part = read_part(folder / prefix, listing.under(prefix), options)
            rows += [replace(row, file=str(folder / prefix / row.file)) for row in part]
            held_out += [is_held_out] * len(part)
        self.files = [Path(row.file) for row in rows]
        captions, labels = columns_if_any(
            [row.caption for row in rows], [row.label for row in rows]
        )
        super().__init__(
            str(folder),
            options,
            len(rows),
            captions=captions,
            labels=labels,
            held_out=np.array(held_out) if any(held_out) else None,
            weights=[row.repeats for row in rows] if any(row.repeats > 1 for row in rows) else None,
            same=[identity(file) for file in self.files],
        )

    def encoded(self, index: int) -> Path:
        return self.files[index]

    def row_name(self, index: int) -> str:
        return str(self.files[index])


def warn_of_unreadable(folder: Path, names: Sequence[str]) -> None:
    """Warn of pictures of formats that cannot be read here."""
    if names:
        kinds = sorted({PurePosixPath(name).suffix.lower() for name in names})
        warnings.warn(
            f"{folder}: {len(names)} files of {', '.join(kinds)} are left out, as Pillow cannot "
            f"read them here (such as {names[0]}); convert them, or install a plug-in such as "
            "pillow-heif",
            stacklevel=3,
        )


def check_prepared(folder: Path, pictures: Sequence[str]) -> None:
    """Raise ArgumentError for a folder that has both instance and class pictures of kohya_ss.

    Its program lays them into ``img/10_sks dog`` and ``reg/1_dog``; as one set, the class pictures
    would be learnt as the thing itself.
    """
    tops = {name.split("/")[0] for name in pictures if concept_of(name)}
    if {"img", "reg"} <= tops:
        raise ArgumentError(
            f"{folder} has both img and reg, the pictures to learn and class pictures; give "
            f"data = {str(folder / 'img')!r} and options.class_data = {str(folder / 'reg')!r}"
        )


def find_splits(folder: Path) -> list[tuple[str, bool]]:
    """Return the prefix of the names in each split of a folder, and whether it is held out."""
    held_out = [name for name in HELD_OUT if (folder / name).is_dir()]
    if (folder / "train").is_dir() and held_out:
        return [("train/", False), *((f"{name}/", True) for name in held_out)]
    return [("", False)]


def read_part(folder: Path, files: Listing, options: DataOptions) -> list[FolderRow]:
    """Read the rows of one split: from its metadata or its subfolders, and caption files."""
    if files.metadata:
        rows = described(folder, files, options)
    elif any(map(concept_of, files.pictures)) and not are_classes(files):
        rows = of_concepts(folder, files.pictures)
    else:
        _, concept = concept_of(f"{folder.name}/") or (1, None)  # one of sd-scripts' folders
        rows = [replace(row, concept=concept or None) for row in by_subfolder(files.pictures)]
    read = read_captions(folder, files, [row.file for row in rows if row.caption is None])
    beside = iter(read)
    found = []
    for row in rows:
        caption = next(beside) if row.caption is None else row.caption
        found.append(replace(row, caption=row.concept if caption is None else caption))
    return found


def by_subfolder(pictures: Sequence[str]) -> list[FolderRow]:
    """Return rows labelled by their subfolders, if all are in one and there are several."""
    parents = {name.split("/")[0] for name in pictures if "/" in name}
    if len(parents) > 1 and all("/" in name for name in pictures):
        return [FolderRow(name, label=name.split("/")[0]) for name in pictures]
    return [FolderRow(name) for name in pictures]


def concept_of(picture: str) -> tuple[int, str] | None:
    """Return (repeats, concept) of the outermost folder that is named so; None without one."""
    for part in picture.split("/")[:-1]:
        if found := CONCEPT.fullmatch(part):
            return int(found[1]), found[2].strip()
    return None


def are_classes(files: Listing) -> bool:
    """Whether numbered folders are classes, counted from 0 or 1, and not concepts with repeats.

    So three or more are, that are numbered without gaps, of pictures without caption files.
    """
    concepts = {concept_of(name) for name in files.pictures}
    numbers = sorted(concept[0] for concept in concepts if concept is not None)
    counted = [*range(numbers[0], numbers[0] + len(numbers))]
    return (
        None not in concepts
        and len(numbers) >= 3
        and numbers == counted
        and numbers[0] in (0, 1)
        and not any(map(files.caption_of, files.pictures))
    )


def of_concepts(folder: Path, pictures: Sequence[str]) -> list[FolderRow]:
    """Return the rows of sd-scripts' folders, labelled by their concepts if there are several.

    As there, pictures elsewhere and those to be repeated 0 times are left out, with a warning.
    """
    found = [(name, concept_of(name) or (0, "")) for name in pictures]
    kept = [(name, count, concept) for name, (count, concept) in found if count]
    if not kept:
        raise DataError(f"{folder}: all folders of pictures are repeated 0 times; rename one")
    if len(kept) < len(found):
        first = next(name for name, (count, _) in found if not count)
        warnings.warn(
            f"{folder}: {len(found) - len(kept)} pictures are left out, as they are not in a "
            f"folder named like 10_dog, which says how often its pictures count (such as {first})",
            stacklevel=2,
        )
    several = len({concept for _, _, concept in kept}) > 1
    return [
        FolderRow(name, None, concept if several else None, count, concept or None)
        for name, count, concept in kept
    ]


def described(folder: Path, files: Listing, options: DataOptions) -> list[FolderRow]:
    """Read the rows of the metadata file of a folder, else of those in its subfolders.

    Leaves out those whose picture is missing, and pictures without a row, with a warning.
    """
    sources = [name for name in METADATA if name in files.metadata]
    if len(sources) > 1:
        warnings.warn(f"{folder} has {' and '.join(sources)}; {sources[0]} counts", stacklevel=2)
    names = FileNames(folder, files.pictures)
    found: list[FolderRow] = []
    for source in sources[:1] or best_of_each(files.metadata):
        found += rows_of(folder, source, names, options)
    if names.outside:
        elsewhere, by = next(iter(names.outside.items()))
        warnings.warn(
            f"{by} names {len(names.outside)} pictures outside of {folder} (such as {elsewhere}), "
            "which are read from there",
            stacklevel=2,
        )
    if names.missing:
        missing, count = [f"{text:.80}" for text, _ in names.missing[:11]], len(names.missing)
        listed = ", ".join(missing[:10]) + (", …" if len(missing) > 10 else "")
        if not found:
            raise DataError(
                f"{names.missing[0][1]} names no picture that is there ({count} rows, the "
                f"first {missing[0]}); file_name is a path from its folder"
            )
        warnings.warn(
            f"{names.missing[0][1]} names {count} pictures that are not there, skipped: {listed}",
            stacklevel=2,
        )
    if not found:
        raise DataError(
            f"{folder / (sources or files.metadata)[0]} has no rows; give each picture one"
        )
    left_over = len(set(files.pictures) - {row.file for row in found} - names.mentioned)
    if left_over:
        where = folder / sources[0] if sources else folder
        warnings.warn(f"{where} has no row for {left_over} pictures, left out", stacklevel=2)
    return found


def best_of_each(metadata: Sequence[str]) -> list[str]:
    """Return one metadata file of each folder."""
    best: dict[str, str] = {}
    for name in sorted(metadata, key=lambda name: METADATA.index(PurePosixPath(name).name.lower())):
        best.setdefault(str(PurePosixPath(name).parent), name)
    return sorted(best.values())


def rows_of(folder: Path, source: str, names: FileNames, options: DataOptions) -> list[FolderRow]:
    """Read the rows of one metadata file whose pictures are there."""
    path = folder / source
    rows: list[dict[str, Any]] = read_rows(path)
    keys = {key: None for row in rows for key in row}
    text = column(keys, options.text, TEXT, str(path))
    label = column(keys, options.label, LABEL, str(path))
    file = column(keys, options.image, FILE, str(path)) or FILE[0]
    found = []
    for number, row in enumerate(rows):
        names.mention(row.values(), path)
        given = row.get(file)
        if not isinstance(given, str):
            raise DataError(f"{path}, row {number} has no {FILE[0]}; give each row one")
        picture = names.find(given, path)
        if picture is None:
            continue
        caption = first_text(row.get(text), f"{path}, row {number}") if text else None
        value = row.get(label) if label else None
        value = as_label(value) if path.suffix == ".csv" else value
        found.append(FolderRow(picture, caption, value))
    return found
