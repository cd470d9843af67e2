"""The losses. Diffusion targets come from the scheduler that also samples, so that they agree."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.likelihood import BITS_PER_NAT, term
from ldm.scheduler import DDPMScheduler

OBJECTIVES = ("simple", "vlb", "hybrid")


def diffusion_weight(scheduler: DDPMScheduler, t: Tensor, gamma: float | None) -> Tensor:
    """Min-SNR weight of each time (Hang et al. 2023, section 3.4): (B,) → (B,).

    min(SNR, γ) weighs x₀'s error; dividing by SNR makes it eps's, by SNR + 1 makes it v's.
    Without ``gamma``, ones. Raises ArgumentError for "mean", whose error has a weight of its own.
    """
    if gamma is None:
        return torch.ones(t.shape, device=t.device)
    if scheduler.config.prediction_type == "mean":
        raise ArgumentError("min_snr_gamma does not go with prediction_type 'mean'; leave it out")
    snr = scheduler.snr(t)
    divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": torch.ones_like(snr)}
    return snr.clamp(max=gamma) / divisor[scheduler.config.prediction_type]


def check_zero_snr(scheduler: DDPMScheduler, min_snr_gamma: float | None) -> None:
    """Raise ArgumentError if nothing can be learnt at a last level of pure noise.

    There ε is the input itself; and min-SNR weights the error by the signal, which is zero.
    """
    if not scheduler.config.rescale_betas_zero_snr:
        return
    if scheduler.config.prediction_type == "epsilon":
        raise ArgumentError(
            "scheduler.rescale_betas_zero_snr with prediction_type 'epsilon' cannot be learnt: the "
            'last level is pure noise; set scheduler.prediction_type = "v_prediction"'
        )
    if min_snr_gamma is not None:
        raise ArgumentError(
            "min_snr_gamma gives the last level of scheduler.rescale_betas_zero_snr no weight; "
            "leave one of them out"
        )


def check_objective(scheduler: DDPMScheduler, objective: str) -> None:
    """Raise ArgumentError for an unknown objective, or a "hybrid" without a variance to learn."""
    if objective not in OBJECTIVES:
        raise ArgumentError(f"objective is {objective!r}; expected one of {', '.join(OBJECTIVES)}")
    if objective == "hybrid" and scheduler.config.variance_type != "learned_range":
        raise ArgumentError(
            "objective 'hybrid' teaches the variance, but scheduler.variance_type is "
            f"{scheduler.config.variance_type!r}; set it to 'learned_range'"
        )


def simple_error(
    scheduler: DDPMScheduler,
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    mask: Tensor | None = None,
) -> Tensor:
    """Mean squared error of each prediction, (B, …) → (B,): L_simple (Ho et al. 2020, eq. 14).

    output: the network's output at x_t; the second half, of a learned variance, is not used.
    mask: weights of the squares, (B, 1, h, w); the mean is still over all.
    """
    prediction, _ = scheduler.split(output)
    square = (prediction.float() - scheduler.target(x0, noise, t)).square()
    return (square if mask is None else mask * square).flatten(1).mean(1)


def diffusion_loss(
    scheduler: DDPMScheduler,
    output: Tensor,
    x0: Tensor,
    noise: Tensor,
    t: Tensor,
    objective: str = "simple",
    gamma: float | None = None,
    vlb_weight: float = 0.001,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a pixel model, and its parts to log.

    "simple": L_simple, with min-SNR weights if ``gamma`` is given.
    "vlb": L_vlb, the variational bound; T · L_t in bits per dimension stands for its sum.
    "hybrid": L_simple + λ L_vlb with λ = ``vlb_weight``, where L_vlb teaches the variance alone,
    since its gradient stops at the mean (Nichol & Dhariwal 2021, eq. 16).

    output: the network's output at ``scheduler.add_noise(x0, noise, t)``, (B, C or 2C, …).
    x0: (B, C, …) of 8-bit values in [-1, 1]; t: int64 (B,), drawn evenly from all T.
    Raises ArgumentError as ``check_objective`` does.
    """
    check_objective(scheduler, objective)
    error = simple_error(scheduler, output, x0, noise, t)
    simple = (diffusion_weight(scheduler, t, gamma) * error).mean()
    metrics = {"mse": error.detach().mean()}
    if objective == "simple":
        return simple, metrics
    if objective == "hybrid":
        prediction, v = scheduler.split(output)
        assert v is not None  # see check_objective
        output = torch.cat([prediction.detach(), v], dim=1)
    x_t = scheduler.add_noise(x0, noise, t)
    vlb = len(scheduler.ratios) * BITS_PER_NAT * term(scheduler, output.float(), x0, x_t, t).mean()
    metrics["vlb"] = vlb.detach()
    return (vlb if objective == "vlb" else simple + vlb_weight * vlb), metrics


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


def contrastive_loss(
    pictures: Tensor, texts: Tensor, caption: Tensor, temperature: float
) -> Tensor:
    """CLIP's symmetric cross-entropy (Radford et al. 2021, figure 3) of states (B,E) each.

    caption: (B,), the number of each row's caption; rows with the same one are equally right.
    """
    pictures, texts = F.normalize(pictures.float(), dim=-1), F.normalize(texts.float(), dim=-1)
    logits = pictures @ texts.T / temperature
    same = (caption[:, None] == caption).float()
    right = same / same.sum(1, keepdim=True)
    return (F.cross_entropy(logits, right) + F.cross_entropy(logits.T, right)) / 2


def psnr(reconstruction: Tensor, x: Tensor) -> float:
    """Peak signal-to-noise ratio in dB of pictures in [-1, 1] (peak 2), taken over all at once."""
    error = (reconstruction.float().clamp(-1, 1) - x).square().mean()
    return float(10 * torch.log10(4 / error))
