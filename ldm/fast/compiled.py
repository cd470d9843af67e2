"""``torch.compile`` of the blocks that a model repeats, each kind once, not of the model.

All residual blocks share code, and all transformer blocks: compiling those takes a fraction of the
time that the whole U-Net takes, for the same speed (PyTorch's "regional compilation").
"""

from __future__ import annotations

from typing import Any

from torch import nn

from ldm.layers import ResnetBlock, TransformerBlock

REGIONS = (ResnetBlock, TransformerBlock)


def compile_regions(model: nn.Module, **options: Any) -> None:
    """Have each block compiled when it is first called; ``options`` are ``torch.compile``'s.

    A block that cannot be compiled whole raises there: no slow half is hidden.
    """
    for module in model.modules():
        if isinstance(module, REGIONS):
            module.compile(fullgraph=True, **options)


def uncompile(model: nn.Module) -> None:
    """Have the plain blocks back."""
    for module in model.modules():
        module._compiled_call_impl = None
