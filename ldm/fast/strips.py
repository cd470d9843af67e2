"""The VAE's decoder on strips of rows: the same picture in less memory, down to a third.

The wide layers go from strip to strip: a convolution reads one row beyond each edge of a strip, so
nothing is computed twice, and strips are freed as soon as they have been read. A group norm needs
the mean and variance of the whole picture, which are combined from those of the strips
(Chan, Golub & LeVeque 1979, eq. 2.1). Unlike tiles that are decoded apart and blended, this is
exact except for rounding.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast import onednn
from ldm.fast.packed import PackedConv2d
from ldm.fast.replace import Replacement
from ldm.layers import ResnetBlock, Upsample
from ldm.memory.networks import FAST_STRIP, STRIP, WHOLE
from ldm.vae import AutoencoderKL, Block, Decoder

Strips = deque[Tensor]  # (1, C, rows, W) each, from top to bottom
Before = Callable[..., Tensor]  # (x, out=None): what a convolution reads, and where to put it


class StripDecoder(Replacement, Decoder):
    """``Decoder`` that decodes large pictures in strips: the processor's caches like that, too."""

    def forward(self, z: Tensor) -> Tensor:
        if _widest(self, z) <= WHOLE:
            return super().forward(z)
        return torch.cat([_decode(self, one, FAST_STRIP) for one in z.split(1)])


def widest(vae: AutoencoderKL, z: Tensor) -> int:
    """Count bytes of the largest of the decoder's layers for one of the latents z (B, C, h, w)."""
    return _widest(vae.decoder, z)


def _widest(decoder: Decoder, z: Tensor) -> int:
    pixels, largest = z.shape[2] * z.shape[3], 0
    for block in decoder.up_blocks:
        for resnet in cast(Block, block).resnets:
            conv = cast(ResnetBlock, resnet).conv1
            channels = max(conv.in_channels, conv.out_channels)
            largest = max(largest, channels * pixels)
        pixels *= 4
    return largest * cast(Tensor, decoder.conv_in.bias).dtype.itemsize


def decode_in_strips(vae: AutoencoderKL, z: Tensor) -> Tensor:
    """As ``vae.decode``: scaled latents (B, C, h, w) → pixels (B, 3, 8h, 8w), in little memory."""
    parts = vae.post_quant_conv(z / vae.config.scaling_factor).split(1)
    return torch.cat([_decode(vae.decoder, one, STRIP) for one in parts])


def _decode(decoder: Decoder, z: Tensor, strip: int) -> Tensor:
    """As ``decoder`` for one z (1, C, h, w), in strips of about so many bytes.

    Larger ones take less time and more memory.
    """
    x = decoder.mid_block(decoder.conv_in(z))
    blocks = deque(decoder.up_blocks)
    while blocks and 4 * x.nbytes <= WHOLE:  # an upsampling has four times as many values
        x = blocks.popleft()(x)
    count = -(-x.nbytes // strip)
    strips = _split(x, -(-x.shape[2] // count))
    del x
    for block in blocks:
        strips = _block(cast(Block, block), strips)
    return torch.cat(
        list(_convolved(strips, _normalised(decoder.conv_norm_out, strips), decoder.conv_out)),
        dim=2,
    )


def _block(block: Block, strips: Strips) -> Strips:
    for resnet in block.resnets:
        strips = _resnet(cast(ResnetBlock, resnet), strips)
    for upsample in block.upsamplers:
        strips = _upsampled(cast(Upsample, upsample), strips)
    return strips


def _resnet(block: ResnetBlock, strips: Strips) -> Strips:
    """Apply a ``ResnetBlock`` without a time."""
    inner: Strips = deque()
    result: Strips = deque()
    shortcut = block.conv_shortcut or nn.Identity()
    for y in _convolved(
        strips,
        _normalised(block.norm1, strips),
        block.conv1,
        lambda x: result.append(shortcut(x)),
    ):
        inner.append(y)
    for i, y in enumerate(_convolved(inner, _normalised(block.norm2, inner), block.conv2)):
        result[i] = y.add_(result[i])
    return result


def _upsampled(upsample: Upsample, strips: Strips) -> Strips:
    """Apply ``Upsample`` to the double: each strip becomes four, which are freed one by one."""
    rows = max(1, strips[0].shape[2] // 4)
    parts = deque(part for strip in strips for part in strip.split(rows, dim=2))
    strips.clear()

    def enlarge(x: Tensor, out: Tensor | None = None) -> Tensor:
        y = F.interpolate(x, scale_factor=2, mode="nearest")
        return y if out is None else out.copy_(y)

    return deque(_convolved(parts, enlarge, upsample.conv))


def _split(x: Tensor, rows: int) -> Strips:
    """Split into strips of so many rows, each in one piece of memory."""
    parts = x.split(rows, dim=2)
    last = torch.channels_last
    return deque(y if y.is_contiguous(memory_format=last) else y.contiguous() for y in parts)


def _convolved(
    strips: Strips,
    before: Before,
    conv: nn.Conv2d,
    seen: Callable[[Tensor], object] = lambda x: None,
) -> Iterator[Tensor]:
    """Convolve ``before(x)``, 3×3; ``seen`` is called with each strip before that is freed."""
    around = conv.padding_mode == "circular"
    first, last = before(strips[0][:, :, :1]), before(strips[-1][:, :, -1:])
    above = last[:, :, -1:] if around else torch.zeros_like(first[:, :, :1])
    end = first[:, :, :1] if around else torch.zeros_like(above)
    scale = first.shape[2]
    while strips:
        strip = strips.popleft()
        seen(strip)
        size = (1, strip.shape[1], scale * strip.shape[2] + 2, first.shape[3])
        rows = torch.empty(
            size, dtype=strip.dtype, device=strip.device, memory_format=torch.channels_last
        )
        rows[:, :, :1] = above
        before(strip, rows[:, :, 1:-1])
        rows[:, :, -1:] = before(strips[0][:, :, :1])[:, :, :1] if strips else end
        above = rows[:, :, -2:-1].clone()
        del strip
        if around:
            rows = F.pad(rows, (1, 1, 0, 0), mode="circular")
        padding = (0, 0) if around else (0, 1)
        if isinstance(conv, PackedConv2d):
            yield conv.convolve(rows, padding)
        else:
            yield F.conv2d(rows, conv.weight, conv.bias, padding=padding)


def _normalised(norm: nn.GroupNorm, strips: Strips) -> Before:
    """Make the function SiLU(group norm), with the mean and variance of all strips together."""
    count = 0
    # squares: the sum of squared differences from the mean
    mean = squares = torch.zeros((), dtype=torch.float64, device=strips[0].device)
    groups, eps = norm.num_groups, norm.eps
    for strip in strips:
        n = strip[0].numel() // groups
        its_mean, rstd = onednn.group_statistics(strip, groups, eps)
        its_mean, variance = its_mean[0].double(), rstd[0].double() ** -2 - eps
        apart = its_mean - mean
        squares = squares + n * variance + apart**2 * (count * n / (count + n))
        mean, count = mean + apart * (n / (count + n)), count + n
    each = norm.num_channels // groups
    mean, variance = ((y.float().repeat_interleave(each)) for y in (mean, squares / count))
    weight, bias = norm.weight.float(), norm.bias.float()

    def apply(x: Tensor, out: Tensor | None = None) -> Tensor:
        # With given statistics, batch and group norm are one.
        y = F.batch_norm(x, mean, variance, weight, bias, eps=eps)
        return F.silu(y, inplace=True) if out is None else onednn.silu_into(y, out)

    return apply
