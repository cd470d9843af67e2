"""Seamless tiles: pictures whose right edge continues at the left, and whose bottom at the top."""

from __future__ import annotations

from torch import nn

from ldm.fast.replace import M, view, with_state_of


def seamless(module: M) -> M:
    """Return a view whose convolutions see the other side past an edge, instead of zeros.

    Rolling a picture then rolls the result, for multiples of the coarsest level's pixels. The
    module itself does not change; see ``ldm.fast.replace.view``.
    """

    def exchange(layer: nn.Module) -> nn.Module:
        if not isinstance(layer, nn.Conv2d) or layer.kernel_size == (1, 1):
            return layer
        around = with_state_of(layer, type(layer))
        around.padding_mode = "circular"
        return around

    return view(module, exchange)
