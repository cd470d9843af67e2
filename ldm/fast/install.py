"""Replace a model's layers by faster ones with the same results, and restore them.

A fast layer replaces a plain one in its parent, under the same name and with the same parameters.
So the readable modules know nothing of the fast ones.
"""

from __future__ import annotations

from torch import nn

from ldm.fast.attention import CachedAttention
from ldm.fast.attention_by_blocks import BlockwiseAttention
from ldm.fast.cpu import PlanarGroupNorm, TrainableAttention
from ldm.fast.norm import DirectGroupNorm
from ldm.fast.packed import GEGLULinear, PackedConv2d, PackedGEGLU, PackedLinear
from ldm.fast.replace import Replacement, replace_children
from ldm.fast.strips import StripDecoder
from ldm.fast.time_cache import TimeCache, cache_of
from ldm.layers import GEGLU, Attention, DotProductAttention
from ldm.unet import UNetEncoder
from ldm.vae import Decoder

REPLACEMENTS: dict[type[nn.Module], type[Replacement]] = {
    nn.Linear: PackedLinear,
    nn.Conv2d: PackedConv2d,
    GEGLU: PackedGEGLU,
    nn.GroupNorm: DirectGroupNorm,
    PlanarGroupNorm: DirectGroupNorm,
    Attention: CachedAttention,
    DotProductAttention: BlockwiseAttention,
    TrainableAttention: BlockwiseAttention,
    Decoder: StripDecoder,
}


def speed_up(model: nn.Module) -> None:
    """Replace each layer that has a fast kind; twice does no harm."""
    if isinstance(model, UNetEncoder) and cache_of(model) is None:
        TimeCache(model)
    for module in list(model.modules()):
        if type(module) is GEGLU:
            module.proj = GEGLULinear.of(module.proj)
    replace_children(model, _fast)


def _fast(layer: nn.Module) -> nn.Module:
    kind = REPLACEMENTS.get(type(layer))
    return layer if kind is None else kind.of(layer)


def slow_down(model: nn.Module) -> None:
    """Restore the plain layers, with their present weights."""
    cache = cache_of(model) if isinstance(model, UNetEncoder) else None
    if cache is not None:
        cache.handle.remove()
    replace_children(model, _plain)


def _plain(layer: nn.Module) -> nn.Module:
    return layer.original() if isinstance(layer, Replacement) else layer
