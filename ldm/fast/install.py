"""Exchange the classes of a model's layers for faster ones of the same results, and back.

A layer stays the object it is, with its parameters, hooks and name: only its ``forward`` becomes
another's. So the readable modules know nothing of the fast ones.
"""

from __future__ import annotations

from torch import nn

from ldm.fast.attention import RememberingAttention
from ldm.fast.cache import Keeping
from ldm.fast.cpu import PlanarGroupNorm
from ldm.fast.int8 import Int8AfterSiLU, Int8Conv2d, Int8GEGLU
from ldm.fast.norm import DirectGroupNorm
from ldm.fast.packed import (
    GEGLULinear,
    Packed,
    PackedConv2d,
    PackedGEGLU,
    PackedLinear,
    Weights,
)
from ldm.fast.strips import StripAutoencoderKL
from ldm.fast.time_cache import TimedUNet, TimeLinear
from ldm.layers import GEGLU, Attention, ResnetBlock
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

FAST: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    GEGLU: PackedGEGLU,
    nn.GroupNorm: DirectGroupNorm,
    PlanarGroupNorm: DirectGroupNorm,
    Attention: RememberingAttention,
    AutoencoderKL: StripAutoencoderKL,
    UNet: TimedUNet,
}
PLAIN: dict[type[nn.Module], type[nn.Module]] = {fast: plain for plain, fast in FAST.items()} | {
    GEGLULinear: nn.Linear,
    TimeLinear: nn.Linear,
    Int8Conv2d: nn.Conv2d,
    Int8AfterSiLU: nn.Conv2d,
    Int8GEGLU: GEGLU,
}


def speed_up(model: nn.Module) -> None:
    """Give every layer of a model its fast class; those that have none, or one, stay."""
    for module in model.modules():
        fast = FAST.get(type(module))
        if fast is None:
            continue
        module.__class__ = fast
        if isinstance(module, Packed):
            module.__dict__["_parameters"] = Weights(module._parameters)
    for module in model.modules():
        if isinstance(module, PackedGEGLU):
            module.proj.__class__ = GEGLULinear
        if isinstance(module, ResnetBlock) and module.time_emb_proj is not None:
            module.time_emb_proj.__class__ = TimeLinear


def slow_down(model: nn.Module) -> None:
    """Have the plain layers back, with the weights they have now."""
    for module in model.modules():
        plain = PLAIN.get(type(module))
        if plain is None:
            continue
        if isinstance(module, Packed):
            module.__dict__["_parameters"] = module._parameters.copy()
        if isinstance(module, Keeping):
            module.forget()
        module.__class__ = plain
