"""Code that the commands share: errors and warnings become one line each, errors an exit code."""

from __future__ import annotations

import argparse
import contextlib
import gc
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

from ldm.cli.allocator import keep_memory
from ldm.cli.printed import discard_stdout, fail, notify, put_traceback
from ldm.errors import ArgumentError, LDMError

FAILED, USAGE, INTERRUPTED = 1, 2, 130
CLOSED = 141  # as of a program that SIGPIPE ends
EXIT_CODES = "exit codes: 0 done, 1 failed, 2 wrong arguments, 130 stopped by Ctrl-C"


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
        with warnings.catch_warnings():
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
    except KeyboardInterrupt:
        notify("stopped")
        message, code = "stopped", INTERRUPTED
    except Exception as error:
        if debug:
            put_traceback()
        message, code = describe_error(error)
        fail(message, code)
    if report is not None:
        with contextlib.suppress(LDMError, BrokenPipeError):
            report(message, code)
    return code


def describe_error(error: Exception) -> tuple[str, int]:
    """Return the message for an error, and the exit code."""
    if isinstance(error, ArgumentError):
        return str(error), USAGE
    if isinstance(error, LDMError | OSError):
        return str(error), FAILED
    reason = f"{type(error).__name__}: {error}".splitlines()[0]
    # PyTorch's two errors, recognised by their text so that PyTorch need not be imported here.
    if isinstance(error, MemoryError) or "t allocate memory" in reason or "OutOfMemory" in reason:
        return f"not enough memory ({reason}); try a smaller size, or fewer at once", FAILED
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
