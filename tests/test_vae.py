"""The autoencoder: the same moments, samples and pictures as diffusers' on the same weights."""

from typing import Any

import pytest
import torch
from torch import nn

from ldm.config import VAEConfig
from ldm.vae import AutoencoderKL, DiagonalGaussian
from tests.helpers.networks import difference, norm_eps, ours_like, randomize

diffusers = pytest.importorskip("diffusers")

TINY: dict[str, Any] = {
    "block_out_channels": (8, 16, 16, 24),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 4,
}
LAYOUTS: dict[str, dict[str, Any]] = {
    "four levels": {},
    "two layers": {"layers_per_block": 2},
    "one level": {"block_out_channels": (8,)},
    "three levels, widths that fall": {"block_out_channels": (16, 8, 12)},
    "three latent channels": {"latent_channels": 3, "scaling_factor": 0.7},
    "grey pictures": {"in_channels": 1, "out_channels": 1},
}
SD15: dict[str, Any] = {
    "block_out_channels": (128, 256, 512, 512),
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
}


def pair(values: dict[str, Any]) -> tuple[nn.Module, AutoencoderKL]:
    """(theirs, ours) on the same random weights."""
    levels = len(values["block_out_channels"])
    with torch.device("meta"):
        theirs = diffusers.AutoencoderKL(
            down_block_types=["DownEncoderBlock2D"] * levels,
            up_block_types=["UpDecoderBlock2D"] * levels,
            **values,
        )
    theirs = randomize(theirs.to_empty(device="cpu"))
    return theirs, ours_like(theirs, AutoencoderKL, VAEConfig.from_dict(dict(theirs.config)))


def compare(
    theirs: nn.Module, ours: AutoencoderKL, batch: int, height: int, width: int
) -> dict[str, float]:
    """Largest differences of moments, sample, KL and decoded pictures."""
    config, scale = ours.config, ours.config.scaling_factor
    generator = torch.Generator().manual_seed(height * width)
    x = torch.rand(batch, config.in_channels, height, width, generator=generator) * 2 - 1
    q, want = ours.posterior(x), theirs.encode(x).latent_dist
    generator.manual_seed(1)
    sample = want.sample(generator) * scale
    generator.manual_seed(1)
    noise = torch.randn(q.mean.shape, generator=generator)
    return {
        "mean": difference(q.mean, want.mean),
        "logvar": difference(q.logvar, want.logvar),
        "kl": abs(q.kl().flatten(1).sum(1) / want.kl() - 1).max().item(),
        "encode, mean": difference(ours.encode(x), want.mode() * scale),
        "encode, sample": difference(ours.encode(x, noise), sample),
        "decode": difference(ours.decode(sample), theirs.decode(sample / scale).sample),
    }


@pytest.mark.parity
@pytest.mark.parametrize("layout", LAYOUTS)
def test_same_as_diffusers(layout: str) -> None:
    theirs, ours = pair(TINY | LAYOUTS[layout])
    assert set(ours.state_dict()) == set(theirs.state_dict())
    assert norm_eps(ours) == norm_eps(theirs)
    for height, width in ((32, 24), (37, 29)):
        found = compare(theirs, ours, 2, height, width)
        assert max(found.values()) <= 1e-5, (found, height, width)


def test_latents_are_eight_times_smaller() -> None:
    _, vae = pair(TINY)
    assert vae.config.scale == 8
    assert vae.encode(torch.zeros(1, 3, 40, 56)).shape == (1, 4, 5, 7)
    assert vae.decode(torch.zeros(1, 4, 5, 7)).shape == (1, 3, 40, 56)


def test_extreme_variances_are_bounded() -> None:
    theirs, ours = pair(TINY)
    bias = torch.tensor([0.0] * 4 + [-100, 100, 0, 0])
    ours.quant_conv.bias.copy_(bias)  # of both: they share it
    x = torch.zeros(1, 3, 16, 16)
    q, want = ours.posterior(x), theirs.encode(x).latent_dist
    assert torch.equal(q.logvar, want.logvar)
    assert q.logvar.aminmax() == (-30, 20)
    assert torch.isfinite(q.kl()).all()


def test_kl_of_known_gaussians() -> None:
    zero = torch.zeros(1)
    assert DiagonalGaussian(zero, zero).kl() == 0
    assert DiagonalGaussian(zero + 3, zero).kl() == 4.5  # μ²/2
    two = DiagonalGaussian(zero, zero + torch.log(torch.tensor(4.0)))  # σ = 2
    torch.testing.assert_close(two.kl(), torch.tensor([1.5 - torch.log(torch.tensor(2.0))]))
    assert two.sample(zero + 1) == 2


@pytest.mark.parity
def test_full_size() -> None:
    """Stable Diffusion 1.5's VAE, 83.7 million parameters."""
    theirs, ours = pair(SD15)
    assert sum(p.numel() for p in ours.parameters()) == 83_653_863
    assert {k: v.shape for k, v in ours.state_dict().items()} == {
        k: v.shape for k, v in theirs.state_dict().items()
    }
    found = compare(theirs, ours, 1, 40, 56)
    assert max(found.values()) <= 1e-4, found
