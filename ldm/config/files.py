"""Files that others wrote: only regular ones are opened, and texts are read up to a limit.

A device may never end, and a pipe or a socket may wait for ever. Every reader of a path that a user
or a file names opens it here.
"""

from __future__ import annotations

import errno
import io
import os
import stat
from pathlib import Path
from typing import BinaryIO, NoReturn

from ldm.errors import CheckpointError, LDMError

KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}

FLAGS = getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0)  # not on Windows


def open_regular(
    path: str | Path,
    error: type[LDMError] = CheckpointError,
    pipes: bool = False,
    wanted: str = "an ordinary file",
) -> BinaryIO:
    """Open a file to read its bytes, if it is an ordinary one; links are followed.

    error: the class of what is raised for anything else, and for names that no file can have.
    pipes: whether a pipe or a terminal is read, too, such as /dev/stdin or a shell's ``<(…)``.
    wanted: what to give instead, in errors.
    Raises OSError as ``open`` does, such as FileNotFoundError.
    """
    try:
        check_kind(path, os.stat(path).st_mode, error, pipes, wanted)  # noqa: PTH116  # a text, too
        # Without waiting: between the two, a pipe may have taken the file's place.
        file = io.open(path, "rb", opener=lambda name, flags: os.open(name, flags | FLAGS))  # noqa: UP020, SIM115
    except LDMError:  # some are OSError or ValueError
        raise
    except OSError as failure:
        if failure.errno == errno.ENXIO:
            refuse(path, stat.S_IFSOCK, error, wanted)
        raise
    except ValueError:  # a zero byte, or half a surrogate pair
        raise error(f"{str(path)!r:.80} is no name that a file can have") from None
    try:
        mode = os.fstat(file.fileno()).st_mode
        check_kind(path, mode, error, pipes, wanted)
        if not stat.S_ISREG(mode):
            os.set_blocking(file.fileno(), True)
    except BaseException:
        file.close()
        raise
    return file


def read_limited(
    path: str | Path,
    most: int,
    error: type[LDMError] = CheckpointError,
    what: str = "file of its kind",
    pipes: bool = False,
) -> bytes:
    """Read a file of at most ``most`` bytes as ``open_regular``; a longer one raises ``error``.

    what: it is, in that message.
    """
    with open_regular(path, error, pipes) as file:
        content = file.read(most + 1) or b""  # None: a file of the system that has nothing to say
    if len(content) > most:
        raise error(f"{path} is longer than {size_words(most)}, which no {what} is")
    return content


def is_name(path: str | Path) -> bool:
    """Whether a file can have a name: without a zero byte, valid, and not too long."""
    try:
        os.stat(os.path.expanduser(path))  # noqa: PTH111, PTH116  # a hub id is no path
    except ValueError:
        return False
    except OSError as error:
        return error.errno not in (errno.ENAMETOOLONG, errno.EINVAL)
    return True


def is_file(path: Path) -> bool:
    """Whether there is a file of a name, which may be one that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def size_words(size: int) -> str:
    """Write a number of bytes."""
    return f"{size >> 20} MB" if size >= 1 << 20 else f"{size >> 10} KB"


def check_kind(
    path: str | Path, mode: int, error: type[LDMError], pipes: bool, wanted: str
) -> None:
    """Raise ``error`` for what is no regular file."""
    if stat.S_ISREG(mode) or (pipes and stat.S_ISFIFO(mode)):
        return
    if not (pipes and stat.S_ISCHR(mode) and is_terminal(path)):
        refuse(path, stat.S_IFMT(mode), error, wanted)


def refuse(path: str | Path, kind: int, error: type[LDMError], wanted: str) -> NoReturn:
    """Raise ``error`` for a kind of file."""
    raise error(f"{path} is {KINDS.get(kind, 'no ordinary file')}; give {wanted}")


def check_file(path: Path, most: int, what: str, error: type[LDMError] = CheckpointError) -> None:
    """Raise ``error`` for what is no regular file, or longer than ``most`` bytes: no ``what`` is.

    For files that another library opens by their names.
    """
    with open_regular(path, error) as file:
        if os.fstat(file.fileno()).st_size > most:
            raise error(f"{path} is longer than {size_words(most)}, which no {what} is")


def is_terminal(path: str | Path) -> bool:
    """Whether a device is a terminal."""
    try:
        number = os.open(path, os.O_RDONLY | FLAGS)
    except OSError:
        return False
    try:
        return os.isatty(number)
    finally:
        os.close(number)
