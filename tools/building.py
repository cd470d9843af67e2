"""Data sets appear whole or not at all."""

import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

from tools.builtin_model.icons.sources import BuildError


def build_whole(output: Path, force: bool, build: Callable[[Path], str]) -> int:
    """Let ``build`` fill a new folder, which then becomes ``output``; returns the exit code.

    What ``build`` returns is printed. 2 for an ``output`` that exists, unless ``force`` replaces
    it, and 1 where ``build`` raises BuildError.
    """
    if output.exists() and not force:
        print(f"{output} exists; choose another --output or pass --force", file=sys.stderr)
        return 2
    # Beside the output, so that the last step is a rename within one file system.
    partial = output.with_name(f".{output.name}.partial-{os.getpid()}")
    partial.mkdir(parents=True)
    try:
        summary = build(partial)
        if output.exists():
            shutil.rmtree(output)
        partial.rename(output)
    except BuildError as error:
        print(error, file=sys.stderr)
        return 1
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(summary)
    return 0
