"""Between pictures and what the U-Net works on: a VAE's latents, or the pixels themselves."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from ldm.config.forms import tensor_fault
from ldm.errors import ArgumentError
from ldm.fast import decode_in_strips, decode_needs_strips
from ldm.fast.copies import to_cpu
from ldm.images.inputs import expand
from ldm.samplers.noise import Noise
from ldm.taesd import AutoencoderTiny
from ldm.techniques.preview import fit_to
from ldm.vae import AutoencoderKL


@dataclass(frozen=True)
class PixelConfig:
    """The part of a VAE's config that the pipeline reads."""

    in_channels: int  # 1 is grey, 3 is RGB
    scale: int = 1  # pixels per "latent" along each side

    @property
    def latent_channels(self) -> int:
        """The channels of the pixels."""
        return self.in_channels


class Pixels(nn.Module):
    """The identity, in place of the VAE of models that draw pixels (Ho et al. 2020)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.config = PixelConfig(channels)

    def encode(self, x: Tensor) -> Tensor:
        """Return the pixels (B, C, H, W) in [-1, 1] as they are."""
        return x

    def decode(self, z: Tensor) -> Tensor:
        """Return the pixels (B, C, H, W) as they are: about in [-1, 1], not clamped."""
        return z

    def preview(self, z: Tensor) -> Tensor:
        """Convert pixels to RGB (B, 3, H, W) in [0, 1], float32 on the CPU."""
        return (z.float().cpu() / 2 + 0.5).clamp(0, 1).expand(-1, 3, -1, -1)


Codec = AutoencoderKL | AutoencoderTiny | Pixels


def encode_pictures(codec: Codec, pixels: Tensor, noise: Noise, device: torch.device) -> Tensor:
    """Encode pictures to scaled latents (B, C, h, w), float32, sampled as diffusers does."""
    count = noise.shape[0]
    dtype = next((parameter.dtype for parameter in codec.parameters()), torch.float32)
    if not isinstance(codec, AutoencoderKL):  # the others draw no noise
        rows = [codec.encode(part.to(device, dtype)).float() for part in pixels.split(1)]
        return expand(torch.cat(rows), count)
    if noise.separate and len(pixels) < count:
        pixels = pixels.repeat(count // len(pixels), 1, 1, 1)
    drawn = noise(len(pixels))
    parts = [
        codec.encode(part.to(device, dtype), eps.to(device, dtype)).float()
        for part, eps in zip(pixels.split(1), drawn.split(1), strict=True)
    ]
    return expand(torch.cat(parts), count)


def encode_means(codec: Codec, pixels: Tensor, count: int, device: torch.device) -> Tensor:
    """Encode pictures to the means of their latents, *not* scaled: (count, C, h, w), float32.

    Editing networks read the image so (Brooks et al. 2023, section 3.2, in their code).
    """
    assert isinstance(codec, AutoencoderKL)  # networks that draw pixels do no edits
    like = next(codec.parameters())
    parts = [codec.posterior(part.to(device, like.dtype)).mean.float() for part in pixels.split(1)]
    return expand(torch.cat(parts), count)


def decode_latents(
    codec: Codec,
    latents: Tensor,
    device: torch.device,
    recorded: Callable[[Tensor], Tensor] | None = None,
) -> Tensor | None:
    """Decode scaled latents (B, C, h, w) to pixels, float32 in [-1, 1] on the CPU.

    Pictures are decoded one at a time, so that a batch needs no more memory than a picture, and in
    strips if memory does not suffice for a whole one (see ``ldm.fast.strips``). A result that is
    not finite is computed once more in float32, with a warning, and the VAE stays in float32.
    recorded: decodes in the place of ``codec.decode``, where nothing else is needed.
    Returns None if that is not finite either.
    """
    first = next((parameter.dtype for parameter in codec.parameters()), torch.float32)
    for dtype in dict.fromkeys([first, torch.float32]):
        if dtype != first:
            warnings.warn(f"the VAE overflows in {first}: decoding in float32", stacklevel=3)
            codec.to(dtype)
        decode = codec.decode if recorded is None else recorded
        if isinstance(codec, AutoencoderKL) and decode_needs_strips(codec, latents, device):
            decode = partial(decode_in_strips, codec)
        pixels = to_cpu(decode(part.to(device, dtype)) for part in latents.split(1))
        if pixels.isfinite().all():
            return pixels.clamp(-1, 1)
    return None


def preview(codec: Codec, latents: Tensor, decode: Callable[[Tensor], Tensor]) -> Tensor:
    """Preview scaled latents (B, C, h, w) as RGB (B, 3, h, w) in [0, 1], float32 on the CPU.

    The first call fits a map to colours with ``decode`` if the VAE has none. A TAESD decodes them.
    """
    if isinstance(codec, AutoencoderKL) and codec.preview is None:
        like = next(codec.parameters())
        codec.preview = fit_to(lambda x: codec.encode(x.to(like)), decode, codec.config.scale)
    assert codec.preview is not None
    return codec.preview(latents)


def check_latents(x: Tensor, channels: int) -> None:
    """Raise ArgumentError for what is no (B, channels, h, w) with values."""
    fault = tensor_fault(x, finite=False)
    if fault is None and (x.ndim != 4 or x.shape[1] != channels):
        fault = f"of the shape {tuple(x.shape)}; it must be (B, {channels}, h, w)"
    if fault is not None:
        raise ArgumentError(f"x is {fault}")
