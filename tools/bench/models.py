"""Random models of Stable Diffusion's sizes, as diffusers' modules and as ours, of one memory."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from ldm.checkpoints.folder import empty
from ldm.checkpoints.names import to_ours
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tools.bench import sizes

PRODUCTS = re.compile(r"conv|linear|mm\b|attention")  # of PyTorch's operators


def fill(module: nn.Module, device: str | torch.device = "cpu") -> nn.Module:
    """Weights that keep activations of about unit size, in the memory of a module on "meta"."""
    module = module._apply(lambda t: torch.empty(t.shape, dtype=t.dtype, device=device))
    module.requires_grad_(False).eval()
    generator = torch.Generator(device).manual_seed(0)
    for name, weight in module.named_parameters():
        if weight.ndim > 1:
            bound = (3 / weight[0].numel()) ** 0.5
            weight.uniform_(-bound, bound, generator=generator)
        else:
            weight.fill_(float(name.endswith("weight") and "norm" in name))
    return module


def pair(
    kind: str, family: str = "sd1", dtype: torch.dtype = torch.float32
) -> tuple[nn.Module, nn.Module]:
    """(ours, diffusers'), kind "unet" or "vae", whose weights are the same tensors."""
    import diffusers

    mine, theirs = {
        "unet": (UNet, diffusers.UNet2DConditionModel),
        "vae": (AutoencoderKL, diffusers.AutoencoderKL),
    }[kind]
    config = getattr(sizes.family(family), kind)
    with torch.device("meta"):
        peer = theirs.from_config(config.to_dict())
    peer = fill(peer.to(dtype))
    return share(empty(mine, config), peer), peer


def share(ours: nn.Module, peer: nn.Module) -> nn.Module:
    """Ours with the tensors of diffusers' module."""
    tensors = to_ours(peer.state_dict(), ours.state_dict())
    ours.load_state_dict(tensors, strict=True, assign=True)
    return ours.requires_grad_(False).eval()


def error(got: Tensor, exact: Tensor) -> float:
    """Root mean square of the difference, in parts of the exact one's spread."""
    return ((got.float() - exact.float()).pow(2).mean().sqrt() / exact.float().std()).item()


def ceiling(action: Callable[[], object]) -> dict[str, str]:
    """Which share of an action's time the products of matrices take: what is left can be saved."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        action()
    times = {one.key: one.self_cpu_time_total for one in seen.key_averages()}
    part = sum(time for name, time in times.items() if PRODUCTS.search(name))
    return {"products": f"{part / sum(times.values()):.0%}"}


def allowed_error(peer: float, dtype: torch.dtype) -> float:
    """In float32 1e-4; in bfloat16 one and a half times the peer's own error."""
    return 1e-4 if dtype == torch.float32 else 1.5 * peer


def unet_inputs(unet: Any, size: int, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Latents, times and texts of a guided step of one picture."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn((2, unet.config.in_channels, size, size), generator=generator)
    context = torch.randn((2, 77, unet.config.cross_attention_dim), generator=generator)
    return x.to(dtype), torch.full((2,), 500.0), context.to(dtype)
