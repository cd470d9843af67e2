"""What the commands share: errors become one line and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from ldm.errors import ArgumentError, LDMError

FAILED, USAGE, INTERRUPTED = 1, 2, 130


def run(action: Callable[[], None], debug: bool) -> int:
    """Run a command's work. Returns 0, or the exit code of what went wrong, told on one line of stderr."""
    try:
        action()
    except KeyboardInterrupt:
        return fail("stopped", INTERRUPTED)
    except Exception as error:
        if debug:
            raise
        if isinstance(error, ArgumentError):
            return fail(str(error), USAGE)
        if isinstance(error, (LDMError, OSError)):
            return fail(str(error), FAILED)
        return fail(f"{type(error).__name__}: {error} (unexpected: --debug shows where)", FAILED)
    return 0


def fail(message: str, code: int) -> int:
    """Print an error on one line of stderr and return its exit code."""
    print(f"error: {' '.join(message.split())}", file=sys.stderr)
    return code
