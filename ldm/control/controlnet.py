"""ControlNet: a copy of half a U-Net that reads a picture, and steers the U-Net by it.

Source: Zhang, Rao & Agrawala 2023, "Adding conditional control to text-to-image diffusion models",
section 3. The copy reads x_t with the picture's features added (eq. 3); its skip connections and
its middle pass "zero convolutions" (eq. 2), which are 0 before training, and are added to the
U-Net's own. Modules are named as in diffusers' ``ControlNetModel``.
"""

from __future__ import annotations

from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import ControlNetConfig
from ldm.unet import UNet, UNetEncoder, required

WEAKEST = -1.0  # of guess mode: log₁₀ of the factor of the finest skip connection


class ControlNetConditioningEmbedding(nn.Module):
    """The small network E of section 3.2: a picture → features at the size of the latents."""

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__()
        widths = config.conditioning_embedding_out_channels
        self.conv_in = nn.Conv2d(config.conditioning_channels, widths[0], 3, padding=1)
        self.blocks = nn.ModuleList()
        for before, width in pairwise(widths):
            self.blocks.append(nn.Conv2d(before, before, 3, padding=1))
            self.blocks.append(nn.Conv2d(before, width, 3, padding=1, stride=2))
        self.conv_out = nn.Conv2d(widths[-1], config.block_out_channels[0], 3, padding=1)
        set_to_zero(self.conv_out)

    def forward(self, hint: Tensor) -> Tensor:
        x = F.silu(self.conv_in(hint))
        for block in self.blocks:
            x = F.silu(block(x))
        return self.conv_out(x)


class ControlNet(UNetEncoder):
    """diffusers' ``ControlNetModel``: by ``ControlNetConfig``."""

    config_class = ControlNetConfig
    weight_stem = "diffusion_pytorch_model"
    config: ControlNetConfig

    def __init__(self, config: ControlNetConfig) -> None:
        super().__init__(config)
        self.controlnet_cond_embedding = ControlNetConditioningEmbedding(config)
        self.controlnet_down_blocks = nn.ModuleList(
            nn.Conv2d(width, width, 1) for width in self.skip_channels
        )
        width = config.block_out_channels[-1]
        self.controlnet_mid_block = nn.Conv2d(width, width, 1)
        for layer in (*self.controlnet_down_blocks, self.controlnet_mid_block):
            set_to_zero(layer)

    @classmethod
    def from_unet(cls, unet: UNet, **changes: Any) -> ControlNet:
        """Make an untrained one that adds nothing yet: a copy of the U-Net's half (section 3.1).

        changes: of its configuration, such as ``conditioning_channels``.
        Raises CheckpointError for a U-Net without a text.
        """
        network = cls(ControlNetConfig.like(unet.config, **changes))
        own = {*network.state_dict()}
        network.load_state_dict(
            {name: value for name, value in unet.state_dict().items() if name in own}, strict=False
        )
        return network

    def embed_hint(self, hint: Tensor) -> Tensor:
        """Return the features of pictures (b, channels, H, W) in [0, 1]: (b, width, h, w).

        They depend on nothing else, so that a run computes them once.
        """
        if self.config.controlnet_conditioning_channel_order == "bgr":
            hint = hint.flip(1)
        return self.controlnet_cond_embedding(hint)

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        hint: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> list[Tensor]:
        """Return what to add to each skip connection, finest first, and to the middle's output.

        hint: (1 or B, first width, h, w), from ``embed_hint``. The others are those of
        ``UNet.forward``; x has the channels of the latents alone, also for an inpainting U-Net.
        Raises ArgumentError for an input that is missing.
        """
        context, hint = required("context", context), required("hint", hint)
        if temb is None:
            temb = self.embed(t, pooled, time_ids, None, class_labels, dtype=x.dtype)
        middle, skips = self.encode(x, temb, context, hint)
        layers = (*self.controlnet_down_blocks, self.controlnet_mid_block)
        return self.pooled(layer(y) for layer, y in zip(layers, (*skips, middle), strict=True))

    def finest(self, x: Tensor, hint: Tensor) -> list[Tensor]:
        """Return the first of what ``forward`` does alone, which next to nothing is computed for.

        It depends neither on the time nor on the text.
        """
        return self.pooled([self.controlnet_down_blocks[0](self.conv_in(x) + hint)])

    def pooled(self, found: Iterable[Tensor]) -> list[Tensor]:
        """Return the means over all pixels, (B, C, 1, 1), if that is what it adds."""
        if self.config.global_pool_conditions:
            return [y.mean(dim=(2, 3), keepdim=True) for y in found]
        return list(found)


def set_to_zero(layer: nn.Conv2d) -> None:
    """Make a convolution a "zero convolution": it learns, as its input is not 0 (eq. 2)."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)


def scaled(
    found: list[Tensor], scale: float, guess_mode: bool = False, count: int | None = None
) -> list[Tensor]:
    """Multiply by a scale; in guess mode, the finer the weaker: by 0.1 … 1 in equal ratios.

    count: how many there are, if these are only the finest.
    Source: the authors' code of guess mode (lllyasviel/ControlNet), as diffusers has it.
    """
    if guess_mode:
        factors = (
            torch.logspace(WEAKEST, 0, count or len(found), dtype=torch.float32, device="cpu")
            * scale
        ).tolist()
        return [y * factor for y, factor in zip(found, factors, strict=count is None)]
    return found if scale == 1 else [y * scale for y in found]
