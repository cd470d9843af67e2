"""Names of pictures in metadata files, as programs on any system write them → the files."""

from __future__ import annotations

import ntpath
import os
import posixpath
from collections.abc import Iterable, Sequence
from pathlib import Path

from ldm.errors import DataError

MOST_CHARACTERS = 4096  # of a path, as Linux allows


class FileNames:
    """Finds the pictures that metadata names.

    A name is a path from the metadata's folder; "\\" may stand for "/". An absolute one, or one
    that leaves the folder, may be of a file elsewhere, which is noted; if there is none, as where
    the set was moved here from another machine, it is the picture in this folder whose path has
    most of its end.
    """

    def __init__(self, folder: Path, pictures: Sequence[str]) -> None:
        self.folder, self.known = folder, set(pictures)
        self.depth = max((name.count("/") + 1 for name in self.known), default=0)
        self.missing: list[tuple[str, Path]] = []  # the name, and the metadata file
        self.outside: dict[str, Path] = {}  # files elsewhere, and the metadata file
        self.moved: dict[str, str] = {}  # picture → the absolute name that is read so
        self.mentioned: set[str] = set()  # pictures that stand in any column

    def mention(self, values: Iterable[object], source: Path) -> None:
        """Note which pictures of the folder a row's values name, such as control pictures."""
        inside = source.parent.relative_to(self.folder).as_posix()
        texts = [value.replace("\\", "/") for value in values if isinstance(value, str)]
        named = {posixpath.normpath(posixpath.join(inside, text)) for text in texts}
        self.mentioned |= named & self.known

    def find(self, given: str, source: Path) -> str | None:
        """Return the file of a name: from the folder, or absolute; None, and noted, if missing.

        Raises DataError for two names of other machines that could be one picture.
        """
        if len(given) > MOST_CHARACTERS:
            self.missing.append((given, source))
            return None
        inside = source.parent.relative_to(self.folder).as_posix()
        for text in (given, given.replace("\\", "/")):
            name = posixpath.normpath(posixpath.join(inside, text))
            if name in self.known:
                return name
        text = given.replace("\\", "/")
        outside = os.path.normpath(self.folder / inside / text)
        # Of ``os.path``, which does not raise for names that no file can have.
        if os.path.isfile(outside):  # noqa: PTH113
            try:
                name = Path(outside).relative_to(self.folder.absolute()).as_posix()
            except ValueError:
                found = str(Path(outside).absolute())
                self.outside.setdefault(found, source)
                return found
            return name if name in self.known else None
        if ntpath.splitdrive(text)[0] or text.startswith("/"):
            return self.find_moved(given, text, source)
        self.missing.append((given, source))
        return None

    def find_moved(self, given: str, text: str, source: Path) -> str | None:
        """Return the picture whose path has most of the end of an absolute name."""
        parts = ntpath.splitdrive(text)[1].strip("/").split("/")
        for start in range(max(0, len(parts) - self.depth), len(parts)):
            name = "/".join(parts[start:])
            if name in self.known:
                before = self.moved.setdefault(name, given)
                if before != given:
                    raise DataError(
                        f"{source} names {before} and {given}, which could both be {name} in "
                        f"{self.folder}; give paths from that folder"
                    )
                return name
        self.missing.append((given, source))
        return None
