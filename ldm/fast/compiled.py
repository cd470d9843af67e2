"""``torch.compile`` of the blocks that a model repeats, each kind once, not of the model.

All residual blocks share code, and all transformer blocks: compiling those takes a fraction of the
time that the whole U-Net takes, for the same speed (PyTorch's "regional compilation"). What was
compiled is kept on disk, so that the next process reads it instead.
"""

from __future__ import annotations

import os
import tempfile
import warnings
from pathlib import Path
from typing import Any

from torch import nn

from ldm.config.speed import user_cache
from ldm.layers import ResnetBlock, TransformerBlock

REGIONS = (ResnetBlock, TransformerBlock)
# Widths of blocks, times shapes of inputs; Stable Diffusion 1.5 has 12 kinds of residual block.
RECOMPILE_LIMIT = 64
# Where PyTorch's compiler keeps its output, of a process and those that it starts.
CACHE = "TORCHINDUCTOR_CACHE_DIR"
DEFAULT = "torchinductor_"  # and the user's name, in the folder for temporary files


def compile_regions(model: nn.Module, **options: Any) -> None:
    """Compile each block when it is first called; ``options`` are ``torch.compile``'s.

    A block that cannot be compiled as a whole raises an error: no slow half is hidden. PyTorch's
    limit of 8 variants of a block, beyond which it would raise too, is raised for the process.
    """
    keep_compiled()
    import torch._dynamo.config as dynamo  # takes a second, so it is not at the top

    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    for module in model.modules():
        if isinstance(module, REGIONS):
            module.compile(fullgraph=True, **options)


def cache_folder() -> Path:
    """Return the user's folder of compiled blocks: ``$XDG_CACHE_HOME/ldm/inductor``."""
    return user_cache() / "inductor"


def keep_compiled() -> None:
    """Have PyTorch's compiler keep its output in the user's cache, for other processes.

    It keeps it anyway, but in the folder for temporary files, which computers empty. A folder of
    the user's own, in ``TORCHINDUCTOR_CACHE_DIR``, stays; the compiler writes its default there
    when it is first imported, which is none. Nobody else may write to the folder, since what lies
    there is run. Warns where it cannot be made.
    """
    own = os.environ.get(CACHE)
    if own is not None and not own.startswith(str(Path(tempfile.gettempdir(), DEFAULT))):
        return
    folder = cache_folder()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        warnings.warn(
            f"compiled blocks are kept in the folder for temporary files, as {folder} cannot be "
            f"made ({error.strerror}); set {CACHE} to another one",
            stacklevel=2,
        )
        return
    os.environ[CACHE] = str(folder)


def uncompile(model: nn.Module) -> None:
    """Restore the plain blocks."""
    for module in model.modules():
        module._compiled_call_impl = None
