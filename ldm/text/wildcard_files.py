"""A folder of text files as wildcards: one option a line, ``#`` for comments.

``people/jobs.txt`` is ``__people/jobs__``. Only files found in the folder are opened, so
that no prompt reads another one; links that lead out of it are refused.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ldm.config.files import read_limited
from ldm.errors import ArgumentError

MOST_BYTES = 4 << 20
MOST_FILES = 20_000
COMMENT = re.compile(r"(?:^|\s)#(?:\s.*)?$|^#.*")


class WildcardFolder(Mapping[str, list[str]]):
    """The ``.txt`` files of a folder by their names without ending, each read when it is needed.

    Raises ArgumentError for a folder that cannot be read or has more than 20,000 files.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            self.root = self.folder.resolve(strict=True)
            os.listdir(self.root)  # noqa: PTH208  # raises an error for what is no folder
        except (OSError, RuntimeError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(
                f"the wildcards {folder} cannot be read ({reason}); give a folder of .txt files"
            ) from None
        self.paths = dict(self._files())

    def _files(self) -> Iterator[tuple[str, Path]]:
        count = 0
        for place, folders, names in os.walk(self.root):
            folders.sort()
            count += len(names)
            if count > MOST_FILES:
                raise ArgumentError(
                    f"the wildcards {self.folder} are more than {MOST_FILES:,} files; give a "
                    "folder of wildcards only"
                )
            for name in sorted(names):
                path = Path(place, name)
                if path.suffix.lower() == ".txt":
                    yield path.relative_to(self.root).with_suffix("").as_posix(), path

    def __iter__(self) -> Iterator[str]:
        return iter(self.paths)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, name: str) -> list[str]:
        """Read a file. Raises ArgumentError if it is no text, too long, or leads elsewhere."""
        shown = self.folder / f"{name}.txt"
        try:
            path = self.paths[name].resolve(strict=True)
            if not path.is_relative_to(self.root):
                raise ArgumentError(f"{shown} is a link out of its folder; copy the file there")
            content = read_limited(path, MOST_BYTES, ArgumentError, "file of wildcards")
            rows = content.decode("utf-8-sig").splitlines()
        except UnicodeDecodeError:
            raise ArgumentError(f"{shown} is not UTF-8 text; save it as UTF-8") from None
        except (OSError, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ArgumentError(f"{shown} cannot be read ({reason})") from None
        return [line for row in rows if (line := COMMENT.sub("", row).strip())]
