"""Code that the commands share: errors and warnings become one line each, errors an exit code."""

from __future__ import annotations

import argparse
import contextlib
import errno
import gc
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ldm.cli.allocator import keep_memory
from ldm.cli.printed import discard_stdout, fail, notify, put_traceback
from ldm.errors import ArgumentError, LDMError
from ldm.memory import shortage

FAILED, USAGE, INTERRUPTED = 1, 2, 130
CLOSED, TERMINATED = 141, 143  # as of programs that SIGPIPE and SIGTERM end
EXIT_CODES = "exit codes: 0 done, 1 failed, 2 wrong arguments, 130 stopped by Ctrl-C"
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota, the longest file allowed


class Terminated(KeyboardInterrupt):
    """Raised by SIGTERM while a command works, so that it removes what is half-written."""


def check_counts(arguments: argparse.Namespace, *names: str) -> None:
    """Raise ArgumentError for a number of things below 1; None stands for a default."""
    for name in names:
        value = getattr(arguments, name)
        if value is not None and value < 1:
            raise ArgumentError(f"--{name.replace('_', '-')} is {value}; it must be at least 1")


def run(
    action: Callable[[], None],
    debug: bool,
    quiet: bool = False,
    report: Callable[[str, int], None] | None = None,
) -> int:
    """Do a command's work. Returns 0, or an exit code after an error message on stderr.

    report: also called with the message and the code. If nobody reads stdout any more, the command
    ends without a message.
    """
    keep_memory()
    if sys.stderr is None:  # closed by the caller: print() would use stdout instead
        sys.stderr = Path(os.devnull).open("w")  # noqa: SIM115  # open until the process ends
    try:
        with stopped_by_sigterm(), warnings.catch_warnings():
            if quiet:
                warnings.simplefilter("ignore")
            warnings.showwarning = lambda message, *_, **__: notify(f"warning: {message}")
            action()
            if sys.stdout is not None:
                sys.stdout.flush()
        return 0
    except BrokenPipeError:
        discard_stdout()
        return CLOSED
    except KeyboardInterrupt as error:
        notify("stopped")
        message, code = "stopped", TERMINATED if isinstance(error, Terminated) else INTERRUPTED
    except Exception as error:
        if debug:
            put_traceback()
        message, code = describe_error(error)
        fail(message, code)
    if report is not None:
        with contextlib.suppress(LDMError, BrokenPipeError):
            report(message, code)
    return code


@contextlib.contextmanager
def stopped_by_sigterm() -> Iterator[None]:
    """Raise ``Terminated`` for SIGTERM, which else ends the process as it is.

    A host program's own handler stays, and so does SIGTERM that is ignored.
    """
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def describe_error(error: Exception) -> tuple[str, int]:
    """Return the message for an error, and the exit code."""
    if isinstance(error, ArgumentError):
        return str(error), USAGE
    if isinstance(error, OSError) and error.errno in FULL and error.filename:
        return f"{error.filename} cannot be written ({error.strerror}); free some space", FAILED
    if not isinstance(error, LDMError) and shortage.is_shortage(error):
        return shortage.message(error), FAILED
    if isinstance(error, LDMError | OSError):
        return str(error), FAILED
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    return f"{reason} (unexpected: --debug shows where)", FAILED


@contextlib.contextmanager
def importing_torch() -> Iterator[None]:
    """Keep the garbage collector from searching modules, which live as long as the process.

    It would do so during their import and again when Python ends: 0.6 s of a run of 2.4 s.
    """
    if "torch" in sys.modules:
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


def random_seed() -> int:
    """Draw a seed in [0, 2³²), as web UIs do."""
    return int.from_bytes(os.urandom(4), "big")
