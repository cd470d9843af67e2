"""The C library's memory: freed tensors' blocks are kept for the next ones.

glibc returns large blocks to the system at once and requests them again, page by page, all zeroed:
in float32 that takes longer than an activation function itself.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

OPT_OUT = "LDM_MALLOC"  # the environment variable; "system" leaves the C library as it is
# The numbers of mallopt(3) and bytes.
MMAP_THRESHOLD = (-3, 1 << 30)  # size from which a block is mapped separately
TRIM_THRESHOLD = (-1, 512 << 20)  # free bytes at the end of the heap before it shrinks
TOP_PAD = (-2, 64 << 20)  # bytes by which it grows at least


def keep_memory() -> None:
    """Set glibc's thresholds for this process; do nothing elsewhere or if the user opted out.

    Thresholds that the user set by glibc's own variables stay.
    """
    opted_out = os.environ.get(OPT_OUT) == "system" or any(
        name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ
    )
    if opted_out or not sys.platform.startswith("linux"):
        return
    with contextlib.suppress(OSError, AttributeError):  # another C library
        library = ctypes.CDLL(None)
        for option in (MMAP_THRESHOLD, TRIM_THRESHOLD, TOP_PAD):
            library.mallopt(*option)
