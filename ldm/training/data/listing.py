"""The files of a folder of pictures, and of the folders in it, each found once."""

from __future__ import annotations

import os
import posixpath
import warnings
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from ldm.training.data.reading import suffixes, unreadable_suffixes
from ldm.training.foreign import kind_of_file

METADATA = ("metadata.jsonl", "metadata.csv")  # the first counts
CAPTIONS = (".txt", ".caption")  # beside a picture; the first counts
MASK_LABEL = "-masklabel"  # at the end of a mask's name, which begins as its picture's (OneTrainer)


@dataclass
class Listing:
    """The names of files, sorted, as paths from a folder with "/" between."""

    pictures: list[str] = field(default_factory=list)
    captions: dict[str, str] = field(default_factory=dict)  # name in lower case → name
    metadata: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)  # pictures of formats Pillow lacks here

    def under(self, prefix: str) -> Listing:
        """Return the files whose names begin with a prefix, without it."""

        def inside(names: list[str]) -> list[str]:
            return [name.removeprefix(prefix) for name in names if name.startswith(prefix)]

        captions = inside(list(self.captions.values()))
        return Listing(
            inside(self.pictures),
            {name.lower(): name for name in captions},
            inside(self.metadata),
            inside(self.unreadable),
        )

    def caption_of(self, picture: str) -> str | None:
        """Return the name of the caption file of a picture: a.txt, or a.png.txt, of a.png."""
        stem = posixpath.splitext(picture)[0]
        for end in CAPTIONS:
            for start in (stem, picture):
                if found := self.captions.get(f"{start}{end}".lower()):
                    return found
        return None


def list_files(folder: Path) -> Listing:
    """List the pictures in a folder and below, and what may describe them; no hidden files."""
    found = Listing()
    readable, unreadable = suffixes(), unreadable_suffixes()
    for name in sorted(walk(folder)):
        lower = name.lower()
        if lower.endswith(readable):
            found.pictures.append(name)
        elif lower.endswith(CAPTIONS):
            found.captions[lower] = name
        elif lower.rpartition("/")[2] in METADATA:
            found.metadata.append(name)
        elif lower.endswith(unreadable):
            found.unreadable.append(name)
    return found


def mask_folder(folder: Path, mask: str | None) -> Path | None:
    """Return the folder that ``data.mask`` names, in the data's folder or elsewhere, if it does."""
    places = [] if mask is None else [folder / mask, Path(mask)]
    return next((place for place in places if place.is_dir()), None)


def without_masks(folder: Path, pictures: list[str], mask: str | None) -> list[str]:
    """Return the names of the pictures in a folder that are not masks of others.

    Warns of those left out that ``mask`` does not name.
    """
    place = mask_folder(folder, mask)
    if place is not None and place.resolve().is_relative_to(folder.resolve()):
        inside = place.resolve().relative_to(folder.resolve()).as_posix()
        pictures = [name for name in pictures if not name.startswith(f"{inside}/")]
    stems = {posixpath.splitext(name)[0] for name in pictures}

    def is_label(name: str) -> bool:
        stem = posixpath.splitext(name)[0]
        return stem.endswith(MASK_LABEL) and stem.removesuffix(MASK_LABEL) in stems

    labels = [name for name in pictures if is_label(name)]
    if labels and mask != MASK_LABEL[1:]:
        warnings.warn(
            f"{folder}: {len(labels)} files are taken for masks and left out (such as "
            f'{labels[0]}); data.mask = "{MASK_LABEL[1:]}" weighs the loss by them',
            stacklevel=3,
        )
    left_out = set(labels)
    return [name for name in pictures if name not in left_out]


def walk(folder: Path) -> Iterator[str]:
    """Yield the files in a folder and below, hidden ones left out.

    Each folder is entered once: first those that are in another, then those that links lead to, so
    that links which lead back, or many that lead to each other, end.
    """
    entered: set[tuple[int, int]] = set()
    inner, links, repeated, odd = [""], list[str](), list[str](), list[str]()
    while inner or links:
        is_link = not inner
        inside = (inner or links).pop()
        try:
            info = (folder / inside).stat()
            if (info.st_dev, info.st_ino) in entered:
                repeated += [inside] * is_link
                continue
            entered.add((info.st_dev, info.st_ino))
            entries = sorted(os.scandir(folder / inside), key=lambda entry: entry.name)
        except OSError as error:
            warnings.warn(
                f"{folder / inside} is left out: it cannot be read ({error.strerror})",
                stacklevel=2,
            )
            continue
        for entry in reversed(entries):  # as a stack, the first is the next
            if entry.name.startswith("."):
                continue
            name = f"{inside}/{entry.name}" if inside else entry.name
            if is_folder(entry):
                (links if entry.is_symlink() else inner).append(name)
            elif kind := special(entry):
                odd.append(f"{name}, {kind}")
            else:
                yield name
    if odd:
        warnings.warn(
            f"{folder}: {len(odd)} entries that are no files are left out: "
            + "; ".join(sorted(odd)[:10]),
            stacklevel=2,
        )
    if repeated:
        warnings.warn(
            f"{folder}: links to folders that are read already are left out: "
            + ", ".join(sorted(repeated)[:10]),
            stacklevel=2,
        )


def is_folder(entry: os.DirEntry[str]) -> bool:
    """Whether an entry is a folder or a link to one; a link to itself is not."""
    try:
        return entry.is_dir()
    except OSError:
        return False


def special(entry: os.DirEntry[str]) -> str | None:
    """Return what an entry is that would block its reader, such as "a named pipe", else None."""
    try:
        return None if entry.is_file() else kind_of_file(entry.path)
    except OSError:  # a link to nothing: the row that needs it says so
        return None


def identity(path: Path) -> object:
    """Return what two names of one file share, as links have; the path if there is no such file."""
    try:
        info = path.stat()
    except OSError:
        return path
    return info.st_dev, info.st_ino
