"""What is minimised. Diffusion targets come from the scheduler that also samples: they agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.scheduler import DDPMScheduler


def diffusion_weight(scheduler: DDPMScheduler, t: Tensor, gamma: float | None) -> Tensor:
    """Min-SNR weight of each time (Hang et al. 2023, section 3.4): (B,) → (B,).

    min(SNR, γ) weighs x₀'s error; dividing by SNR makes it eps's, by SNR + 1 makes it v's.
    Without ``gamma``, ones.
    """
    if gamma is None:
        return torch.ones(t.shape, device=t.device)
    snr = scheduler.snr(t)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / divisor[scheduler.config.prediction_type]


def reconstruction_loss(reconstruction: Tensor, x: Tensor, gradient: float) -> Tensor:
    """L1 + MSE + ``gradient`` × L1 of the differences of neighbours, which keeps edges sharp.

    Both (B,3,H,W) in [-1, 1]; a scalar, averaged over values.
    """
    error = reconstruction - x
    edges = (error[..., 1:, :] - error[..., :-1, :]).abs().mean() + (
        error[..., 1:] - error[..., :-1]
    ).abs().mean()
    return error.abs().mean() + error.square().mean() + gradient * edges


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Make the student's sentence vectors the teacher's: 1 − cosine + InfoNCE; both (B,E).

    InfoNCE (van den Oord et al. 2018, eq. 4), from student to teacher, tells a batch's texts apart.
    """
    student, teacher = F.normalize(student.float(), dim=-1), F.normalize(teacher, dim=-1)
    cosine = (student * teacher).sum(-1)
    logits = student @ teacher.T / temperature
    return (1 - cosine).mean() + F.cross_entropy(
        logits, torch.arange(len(logits), device=logits.device)
    )


def psnr(reconstruction: Tensor, x: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] (peak 2), taken over all at once."""
    error = (reconstruction.float().clamp(-1, 1) - x).square().mean()
    return float(10 * torch.log10(4 / error))
