"""Have the C library keep the memory that tensors are done with, for the next ones.

glibc gives large blocks back to the system at once and asks for them anew, which hands out pages
of zeros one by one: in float32 that takes longer than an activation function itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

OPT_OUT = "LDM_MALLOC"  # the environment variable; "system" leaves the C library as it is
# The numbers of mallopt(3) and bytes.
MMAP_THRESHOLD = (-3, 1 << 30)  # blocks from which memory is asked for apart
TRIM_THRESHOLD = (-1, 512 << 20)  # free bytes at the end of the heap before it shrinks
TOP_PAD = (-2, 64 << 20)  # bytes by which it grows at least


def keep_memory() -> None:
    """Set glibc's thresholds for this process; elsewhere, or where told not to, do nothing.

    Thresholds that the user set by glibc's own variables stay.
    """
    told = os.environ.get(OPT_OUT) == "system" or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    )
    if told or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for option in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            library.mallopt(*option)
