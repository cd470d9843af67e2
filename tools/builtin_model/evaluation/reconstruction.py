"""How much of a picture survives the VAE."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.training.data import CaptionedImages
from ldm.vae import AutoencoderKL

PEAK = 2.0  # pixels are in [-1, 1]


@dataclass(frozen=True)
class Reconstruction:
    """PSNR in dB over the held-out pictures."""

    images: int
    psnr_mean: float  # the mean of the pictures' PSNR
    psnr_of_mean_error: float  # PSNR of the mean squared error over all pictures: lower


def psnr(squared_error: float) -> float:
    """10·log₁₀(peak² / mean squared error), in dB; infinite for no error."""
    return math.inf if squared_error == 0 else 10 * math.log10(PEAK**2 / squared_error)


def squared_errors(a: Tensor, b: Tensor) -> list[float]:
    """Mean squared error of each picture: two (B, C, H, W) → B numbers."""
    return (a.double() - b.double()).square().mean(dim=(1, 2, 3)).tolist()


@torch.no_grad()
def reconstruct(vae: AutoencoderKL, data: CaptionedImages, batch: int = 8) -> Reconstruction:
    """Encode every held-out picture whole to the mean latent and decode it, clamped to [-1, 1]."""
    errors: list[float] = []
    for indices in data.held_out.split(batch):
        pixels = data.pixels(indices)
        errors += squared_errors(vae.decode(vae.encode(pixels)).clamp(-1, 1), pixels)
    mean = sum(psnr(error) for error in errors) / len(errors)
    return Reconstruction(len(errors), mean, psnr(sum(errors) / len(errors)))
