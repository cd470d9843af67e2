"""Files and folders that get their names when they are complete.

A process that is killed, a full disk or an error leaves what was there before.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

from ldm.errors import LDMError
from ldm.writing.parts import GONE, OLD, PART, PREFIX, part_folder


@contextlib.contextmanager
def whole_file(path: Path, overwrite: bool = True) -> Iterator[Path]:
    """Provide the path at which to write a file; when the block is left, it becomes ``path``.

    Raises OSError that names ``path``: FileExistsError if it exists and ``overwrite`` is False,
    also if another process was quicker.
    """
    with _naming(path), part_folder(path.parent) as part:
        new = part / path.name
        yield new
        if overwrite:
            new.replace(path)
        else:
            _rename_to_new(new, path)


@contextlib.contextmanager
def whole_path(path: Path) -> Iterator[Path]:
    """Provide the path at which to write a file or a folder, which then replaces all of ``path``.

    Where one of them is a folder, what was there is moved away first: a process that is killed
    between the two renames leaves it in the part folder, which ``clear_leftovers`` moves back.
    Raises OSError that names ``path``.
    """
    with _naming(path), part_folder(path.parent) as part:
        new, old = part / path.name, part / OLD / path.name
        yield new
        folders = any(each.is_dir() and not each.is_symlink() for each in (new, path))
        if not folders or not os.path.lexists(path):
            new.replace(path)
            return
        old.parent.mkdir()
        path.rename(old)
        new.rename(path)  # if this fails, part_folder moves the old one back
        old.parent.rename(part / GONE)  # one half deleted must not be moved back


@contextlib.contextmanager
def whole_files(folder: Path) -> Iterator[Path]:
    """Provide a folder whose files are moved into ``folder`` when all are written.

    Other files of ``folder`` stay. It is made if it does not exist, and then appears as a whole;
    else the files move one by one, those that are directly in it last. Raises OSError that names
    ``folder``.
    """
    if not os.path.lexists(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        with whole_path(folder) as new:
            new.mkdir()
            yield new
        return
    with _naming(folder), part_folder(folder) as part:
        new = part / "new"
        new.mkdir()
        yield new
        files = [path.relative_to(new) for path in new.rglob("*") if not path.is_dir()]
        for file in sorted(files, key=lambda path: (-len(path.parts), path)):
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (new / file).replace(folder / file)


def as_os_error(error: Exception, path: Path) -> OSError:
    """Turn a library's own error of writing a file into the OSError that it was."""
    if isinstance(error, OSError) and error.errno is not None:
        return error
    found = re.search(r"\(os error (\d+)\)", str(error))  # of those written in Rust
    if found is None:
        return OSError(f"cannot write {path} ({error})")
    number = int(found[1])
    return OSError(number, os.strerror(number), str(path))


@contextlib.contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Let errors of files in the part folder name ``path``, which the user knows."""
    try:
        yield
    except OSError as error:
        if type(error) is OSError and error.errno is None:  # NumPy's, of a write cut short
            raise OSError(f"{path} cannot be written ({error}); free some space") from error
        if isinstance(error, LDMError) or error.errno is None or not _is_ours(error.filename):
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def _is_ours(name: str | bytes | None) -> bool:
    """Whether an error is of a file in a part folder, or of an open one."""
    parts = () if name is None else Path(os.fsdecode(name)).parts
    return name is None or any(each.startswith(PREFIX) and each.endswith(PART) for each in parts)


def _rename_to_new(new: Path, path: Path) -> None:
    """Give a file its name; FileExistsError if the name is taken, however short a time ago."""
    try:
        os.link(new, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without hard links: claim the name, then put the file there
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
        try:
            new.replace(path)
        except BaseException:
            path.unlink()
            raise
