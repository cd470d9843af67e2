"""``torch.compile`` of the blocks that a model repeats, each kind once, not of the model.

All residual blocks share code, and all transformer blocks: compiling those takes a fraction of the
time that the whole U-Net takes, for the same speed (PyTorch's "regional compilation").
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ldm.layers import ResnetBlock, TransformerBlock

REGIONS = (ResnetBlock, TransformerBlock)
# Widths of blocks, times shapes of inputs; Stable Diffusion 1.5 has 12 kinds of residual block.
RECOMPILE_LIMIT = 64


def compile_regions(model: nn.Module, **options: Any) -> None:
    """Compile each block when it is first called; ``options`` are ``torch.compile``'s.

    A block that cannot be compiled as a whole raises an error: no slow half is hidden. PyTorch's
    limit of 8 variants of a block, beyond which it would raise too, is raised for the process.
    """
    import torch._dynamo.config as dynamo  # takes a second, so it is not at the top

    dynamo.recompile_limit = max(dynamo.recompile_limit, RECOMPILE_LIMIT)
    for module in model.modules():
        if isinstance(module, REGIONS):
            module.compile(fullgraph=True, **options)


def uncompile(model: nn.Module) -> None:
    """Restore the plain blocks."""
    for module in model.modules():
        module._compiled_call_impl = None
