"""T2I-Adapter: a small network that turns a picture into features which a U-Net adds to its own.

Source: Mou et al. 2023, "T2I-Adapter: Learning adapters to dig out more controllable ability for
text-to-image diffusion models", section 3.3. In contrast to a ControlNet, it reads neither x_t nor
the time nor the text, so that a run computes it once. Modules are named as in diffusers'
``T2IAdapter``.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config.t2i_adapter import LIGHT, T2IAdapterConfig


class AdapterResnetBlock(nn.Module):
    """x + conv(ReLU(conv(x))), of the same channels and size."""

    def __init__(self, channels: int, last_kernel: int) -> None:
        super().__init__()
        self.block1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.block2 = nn.Conv2d(channels, channels, last_kernel, padding=last_kernel // 2)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.block2(F.relu(self.block1(x)))


class AdapterBlock(nn.Module):
    """One level: it halves the resolution or not, changes the width, and has residual blocks.

    A light one computes its residual blocks at a quarter of the width.
    """

    def __init__(
        self, in_channels: int, out_channels: int, num_res_blocks: int, halve: bool, light: bool
    ) -> None:
        super().__init__()
        self.halve = halve
        width = out_channels // 4 if light else out_channels
        self.in_conv: nn.Module | None = None
        if light or in_channels != width:
            self.in_conv = nn.Conv2d(in_channels, width, 1)
        self.resnets = nn.Sequential(
            *(AdapterResnetBlock(width, 3 if light else 1) for _ in range(num_res_blocks))
        )
        self.out_conv = nn.Conv2d(width, out_channels, 1) if light else None

    def forward(self, x: Tensor) -> Tensor:
        if self.halve:
            x = F.avg_pool2d(x, 2, ceil_mode=True)
        if self.in_conv is not None:
            x = self.in_conv(x)
        x = self.resnets(x)
        return x if self.out_conv is None else self.out_conv(x)


class AdapterLayers(nn.Module):
    """The layers of an adapter, below the name "adapter" of diffusers' checkpoints."""

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        light = config.adapter_type == LIGHT
        before = config.in_channels * config.downscale_factor**2  # of the unshuffled picture
        self.conv_in: nn.Module | None = None
        if not light:
            self.conv_in = nn.Conv2d(before, config.channels[0], 3, padding=1)
            before = config.channels[0]
        self.body = nn.ModuleList()
        for width, halve in zip(config.widths, config.halves, strict=True):
            self.body.append(AdapterBlock(before, width, config.num_res_blocks, halve, light))
            before = width

    def forward(self, x: Tensor) -> list[Tensor]:
        if self.conv_in is not None:
            x = self.conv_in(x)
        features = []
        for block in self.body:
            x = block(x)
            features.append(x)
        return features


class T2IAdapter(nn.Module):
    """diffusers' ``T2IAdapter``: by ``T2IAdapterConfig``."""

    config_class = T2IAdapterConfig
    weight_stem = "diffusion_pytorch_model"

    def __init__(self, config: T2IAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.adapter = AdapterLayers(config)

    def forward(self, picture: Tensor) -> list[Tensor]:
        """Return the features of pictures (b, in_channels, H, W) in [0, 1], finest first.

        Each is (b, channels, ⌈H/f⌉, ⌈W/f⌉), by ``T2IAdapterConfig.places``. Sides that
        downscale_factor does not divide, which diffusers refuses, are continued at the edge.
        """
        factor = self.config.downscale_factor
        height, width = picture.shape[2:]
        padding = (0, -width % factor, 0, -height % factor)
        if any(padding):
            picture = F.pad(picture, padding, mode="replicate")
        return self.adapter(F.pixel_unshuffle(picture, factor))
