"""Previews: the colours of latents by a linear map, a thousand times cheaper than a decode.

Each latent pixel gives about the mean colour of its square of pixels: the decoder is non-linear,
but close to linear in such means.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import CheckpointError

PICTURES, SIDE = 12, 16  # that a map is fitted to; the side is in latents
COARSE = (2, 4, 8)  # sides of the patches of colour in them
SEED = 0


@dataclass(frozen=True, eq=False)
class LinearPreview:
    """Scaled latents (B, C, h, w) → RGB (B, 3, h, w) in [0, 1], float32 on the CPU."""

    weight: Tensor  # (3, C)
    bias: Tensor  # (3,)

    def __call__(self, latents: Tensor) -> Tensor:
        colours = torch.einsum("rc,bchw->brhw", self.weight, latents.float().cpu())
        return (colours + self.bias[:, None, None]).clamp(0, 1)

    @classmethod
    def of(cls, values: dict[str, Any], channels: int, where: object) -> LinearPreview:
        """Read a file's ``weight`` (3, channels) and ``bias`` (3). Raises CheckpointError."""
        try:
            weight, bias = (
                torch.tensor(values[name], dtype=torch.float32, device="cpu")
                for name in ("weight", "bias")
            )
            fits = weight.shape == (3, channels) and bias.shape == (3,)
            fits = fits and bool(weight.isfinite().all() and bias.isfinite().all())
        except (KeyError, TypeError, ValueError, RuntimeError, OverflowError):
            fits = False
        if not fits:
            raise CheckpointError(
                f"{where} is no map to colours, which has 3 rows of {channels} numbers as weight "
                f"for {channels} latent channels, and 3 numbers as bias; delete it, or make it "
                "anew with python -m tools.builtin_model.fit_preview"
            )
        return cls(weight.float(), bias.float())

    def values(self) -> dict[str, Any]:
        """Return what ``of`` reads."""
        return {"weight": self.weight.tolist(), "bias": self.bias.tolist()}


def shrink(pixels: Tensor, factor: int) -> Tensor:
    """Average pixels (B, 3, H, W) in [-1, 1] to colours (B, 3, H/factor, W/factor) in [0, 1]."""
    return F.avg_pool2d(pixels.float().clamp(-1, 1) / 2 + 0.5, factor)


def fit(latents: Tensor, colours: Tensor) -> LinearPreview:
    """Fit the map of least squares from latents (B, C, h, w) to colours (B, 3, h, w)."""
    x = latents.double().movedim(1, -1).flatten(0, -2)
    x = torch.cat([x, torch.ones_like(x[:, :1])], dim=1)
    y = colours.double().movedim(1, -1).flatten(0, -2)
    # By the normal equations' pseudo-inverse, so that latents without contrast also have a map.
    solution = torch.linalg.pinv(x.T @ x, hermitian=True) @ (x.T @ y)
    return LinearPreview(solution[:-1].T.float().contiguous(), solution[-1].float())


def r_squared(preview: LinearPreview, latents: Tensor, colours: Tensor) -> float:
    """Compute the share of the colours' variance that previews explain; 1 is all of it."""
    error = (preview(latents) - colours).double().square().sum()
    spread = colours - colours.mean(dim=(0, 2, 3), keepdim=True)
    return 1 - (error / spread.double().square().sum()).item()


@torch.no_grad()
def fit_to(
    encode: Callable[[Tensor], Tensor], decode: Callable[[Tensor], Tensor], factor: int
) -> LinearPreview:
    """Fit the map for any VAE, with patches of colour.

    encode: pixels (1, 3, H, W) in [-1, 1] → scaled latents (1, C, H/factor, W/factor).
    decode: the way back.
    Takes as long as both with 12 pictures, of 128 pixels a side if ``factor`` is 8.
    """
    generator = torch.Generator().manual_seed(SEED)
    latents, colours = [], []
    for index in range(PICTURES):
        side = COARSE[index % len(COARSE)]
        # Half of the values are 0 or 1: pure colours are the most informative.
        patches = (
            torch.rand((1, 3, side, side), generator=generator, dtype=torch.float32, device="cpu")
            * 4
            - 2
        ).clamp(-1, 1)
        size = (SIDE * factor, SIDE * factor)
        z = encode(F.interpolate(patches, size=size, mode="nearest"))
        latents.append(z.float().cpu())
        colours.append(shrink(decode(z).cpu(), factor))
    return fit(torch.cat(latents), torch.cat(colours))
