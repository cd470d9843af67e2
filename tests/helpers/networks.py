"""Random networks, ours with the weights of the references', and how far results are apart."""

import math
from typing import Any

import torch
from torch import Tensor, nn

from ldm.checkpoints.names import to_ours

# A U-Net's config.json for the built-in model's VAE and text encoder.
TINY_BUILTIN = {
    "sample_size": 4,
    "in_channels": 8,
    "out_channels": 8,
    "block_out_channels": [32, 32],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "attention_head_dim": 1,
    "layers_per_block": 1,
    "cross_attention_dim": 256,
}


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights that keep activations of about unit size, so that no error hides in zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                middle = 1 if name.endswith("weight") else 0  # of a norm, or a bias
                parameter.uniform_(middle - 0.2, middle + 0.2, generator=generator)
    return module.requires_grad_(False).eval()


def ours_like(theirs: nn.Module, module_class: type[nn.Module], config: Any) -> nn.Module:
    """Our module with the very tensors of a reference module; every name must fit."""
    with torch.device("meta"):
        ours = module_class(config)
    ours.load_state_dict(to_ours(theirs.state_dict(), ours.state_dict()), strict=True, assign=True)
    return ours.requires_grad_(False).eval()


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; both must have one shape and be worth comparing."""
    assert a.shape == b.shape
    assert b.isfinite().all()
    assert b.std() > 1e-3
    return (a - b).abs().max().item()


def norm_eps(module: nn.Module) -> dict[str, float]:
    """The ε of every normalisation: too small a number to show in outputs of unit size."""
    parts = module.named_modules()
    return {name: m.eps for name, m in parts if isinstance(m, nn.GroupNorm | nn.LayerNorm)}
