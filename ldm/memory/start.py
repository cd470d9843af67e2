"""Whether PyTorch's libraries fit into the address space: without it, they end the process.

numpy's OpenBLAS and PyTorch's threads abort or print pages where ``ulimit -v`` leaves too little.
"""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

from ldm.errors import NotEnoughMemoryError
from ldm.memory.system import address_space, gigabytes

# Beside PyTorch's own libraries: Python, numpy, Pillow, the heap and threads.
OTHERS = 350 << 20
PATTERNS = ("torch/lib/*.so*", "nvidia/*/lib/*.so*")


def libraries_size() -> int:
    """Count the bytes of the libraries that importing PyTorch maps."""
    spec = find_spec("torch")
    if spec is None or spec.origin is None:
        return 0
    packages = Path(spec.origin).parents[1]
    files = {file.resolve() for pattern in PATTERNS for file in packages.glob(pattern)}
    return sum(file.stat().st_size for file in files)


def check_start() -> None:
    """Raise NotEnoughMemoryError if ``ulimit -v`` leaves too little to import PyTorch."""
    left = address_space()
    if left is None:
        return
    needed = OTHERS + libraries_size()
    if left < needed:
        raise NotEnoughMemoryError(
            f"the limit of address space (ulimit -v) leaves {gigabytes(left)}, but Python and "
            f"PyTorch map {gigabytes(needed)} before anything is drawn; raise it: ulimit -v "
            f"{(needed + (1 << 29)) // 1024}"
        )
