"""Where memory is short, the C library gives freed blocks back at once, instead of keeping them.

Kept blocks make a run faster, but of tensors of many sizes they leave holes that nothing fits into:
measured, up to twice as much memory as the tensors that are alive. Blocks that are mapped one by
one take only what they hold, and time for mapping: some percent of a step.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

OPT_OUT = "LDM_MALLOC"  # the environment variable; "system" leaves the C library as it is
# The numbers of mallopt(3) and bytes.
MMAP_THRESHOLD = (-3, 256 << 10)
TRIM_THRESHOLD = (-1, 1 << 20)
TOP_PAD = (-2, 1 << 20)
HOLES = 2.5  # times what tensors take, from which on holes do no harm
FREED = 64 << 20  # bytes freed for good, after which their holes are given back
# How many descriptions of products PyTorch keeps for each thread; read at the first of these.
DESCRIPTIONS = "LRU_CACHE_CAPACITY"

_freed = 0  # bytes since the last time


def be_thrifty() -> None:
    """Map blocks one by one in this process from now on, and return what is free."""
    if os.environ.get(OPT_OUT) == "system" or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for option in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            library.mallopt(*option)
        library.malloc_trim(0)


def give_back(size: int) -> None:
    """Return the holes of weights, of which so many bytes were just freed, now and then.

    A packed weight does not fit into the hole of its plain one, as aligned blocks need more.
    """
    global _freed
    _freed += size
    if _freed < FREED:
        return
    _freed = 0
    if os.environ.get(OPT_OUT) == "system" or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


def keep_one_description() -> None:
    """Let PyTorch's CPU threads keep the description of one product each, not of 1,024.

    Each is of a quarter of a megabyte, and oneDNN keeps them, too, so that nothing takes longer.
    Training has so many kinds of products that it was 55 MB. A number of the user's stays.
    """
    os.environ.setdefault(DESCRIPTIONS, "1")
