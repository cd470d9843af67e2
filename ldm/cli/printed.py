"""All that the commands print: texts from files and from users cannot act on the terminal.

Control characters, which move the cursor or set the title, further line ends, which forge lines,
and controls of the writing direction are shown as escapes: ``\\x1b``, ``\\u202e``. Nothing else in
``ldm.cli`` writes to stdout or stderr. JSON, names of files that another program reads, and
pictures on stdout are bytes: ``put``.
"""

from __future__ import annotations

import contextlib
import os
import re
import sys
import traceback

from ldm.errors import LDMError

LONGEST = 1000  # characters of a line on stderr; longer ones quote the user's input at length
# C0, DEL and C1; marks, embeddings, overrides and isolates of direction; line and paragraph
# separators; the byte order mark; annotations; halves of surrogate pairs.
HIDDEN = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\u061c\\u200e\\u200f\\u2028-\\u202e\\u2066-\\u2069\\ufeff\\ufff9-\\ufffb"
    "\\ud800-\\udfff]"
)
SHORT = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}


def visible(text: str) -> str:
    """Return a text on one line that leaves the terminal alone: what it hides is escaped."""
    return HIDDEN.sub(escaped, text)


def escaped(match: re.Match[str]) -> str:
    """Return a character as Python and, above ASCII, JSON write it."""
    number = ord(match[0])
    return SHORT.get(match[0]) or (f"\\x{number:02x}" if number < 0x20 else f"\\u{number:04x}")


def put(content: bytes) -> None:
    """Write bytes to stdout at once, if it is open.

    Raises BrokenPipeError if nobody reads it any more, LDMError for any other failure.
    """
    if sys.stdout is None:  # closed by the caller
        return
    try:
        sys.stdout.buffer.write(content)
        sys.stdout.buffer.flush()
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_stdout()
        raise LDMError(f"standard output cannot be written ({error.strerror})") from None


def put_text(text: str) -> None:
    """Write lines to stdout, each made visible; ``put`` says which errors are raised."""
    put("\n".join(map(visible, text.split("\n"))).encode())


def put_name(path: str | os.PathLike[str]) -> None:
    """Write a file's name: exactly its bytes, but made visible on a terminal."""
    if sys.stdout is not None and sys.stdout.isatty():
        put_text(f"{visible(os.fspath(path))}\n")
    else:
        put(os.fsencode(path) + b"\n")


def discard_stdout() -> None:
    """Discard what is left to write: Python flushes when it ends, which must not fail once more."""
    with contextlib.suppress(OSError, ValueError):  # it is no file, in tests
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def fail(message: str, code: int) -> int:
    """Print an error message and return its exit code."""
    notify(f"error: {message}")
    return code


def notify(message: str) -> None:
    """Print a message as one line on stderr, if that is open."""
    line = visible(" ".join(message.splitlines()))
    put_error_text(line if len(line) <= LONGEST else f"{line[:LONGEST]}…")


def put_error_text(text: str) -> None:
    """Print lines on stderr, if that is open, each made visible."""
    if sys.stderr is None:  # print() would use stdout instead
        return
    with contextlib.suppress(OSError):
        lines = "\n".join(map(visible, text.split("\n")))
        print(lines, file=sys.stderr, flush=True)


def put_traceback() -> None:
    """Print the traceback of the error that is handled now on stderr, its message on one line."""
    for part in traceback.format_exception(*sys.exc_info()):
        own = part.startswith(("  File ", "Traceback ", "\n"))  # lines of code, and headings
        put_error_text(part.rstrip("\n") if own else visible(part.rstrip("\n")))
