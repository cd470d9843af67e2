"""Runs that begin with trained weights, also with more channels at the ends."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ldm.checkpoints.folder import save_component
from ldm.config import UNetConfig, VAEConfig
from ldm.errors import ArgumentError
from ldm.training.warm_start import begin_with, new_unet
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

VAE = VAEConfig.from_dict(
    {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
)
UNET = UNetConfig.from_dict(
    {
        "block_out_channels": [8, 16],
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        "layers_per_block": 1,
        "attention_head_dim": 2,
        "cross_attention_dim": 12,
        "norm_num_groups": 4,
    }
)


@pytest.fixture
def vae(tmp_path: Path) -> AutoencoderKL:
    torch.manual_seed(0)
    vae = AutoencoderKL(VAE).eval()
    save_component(vae, tmp_path / "vae")
    return vae


def test_a_vae_with_more_latent_channels_begins_as_the_one_it_came_from(vae, tmp_path):
    wide = AutoencoderKL(replace(VAE, latent_channels=7)).eval()
    begin_with(wide, str(tmp_path / "vae"))
    x = torch.randn(2, 3, 24, 40)
    with torch.no_grad():
        old, new = vae.posterior(x), wide.posterior(x)
        torch.testing.assert_close(new.mean[:, :4], old.mean, atol=1e-6, rtol=0)
        torch.testing.assert_close(new.logvar[:, :4], old.logvar, atol=1e-6, rtol=0)
        assert new.mean[:, 4:].std() > 0.01, "new channels must say something, or they never learn"
        scale = VAE.scaling_factor
        torch.testing.assert_close(
            wide.decode(new.mean * scale), vae.decode(old.mean * scale), atol=1e-5, rtol=0
        )


def test_new_channels_of_a_vae_learn(vae, tmp_path):
    wide = AutoencoderKL(replace(VAE, latent_channels=7))
    begin_with(wide, str(tmp_path / "vae"))
    x = torch.randn(1, 3, 16, 16)
    wide.decode(wide.posterior(x).mean).square().mean().backward()
    assert wide.decoder.conv_in.weight.grad[:, 4:].abs().max() > 0


def test_a_unet_with_a_mask_begins_as_the_one_without(tmp_path):
    torch.manual_seed(0)
    unet = UNet(UNET).eval()
    save_component(unet, tmp_path / "unet")
    wide = new_unet(replace(UNET, in_channels=9), str(tmp_path / "unet")).eval()
    x, mask, context = torch.randn(2, 4, 8, 8), torch.randn(2, 5, 8, 8), torch.randn(2, 3, 12)
    t = torch.tensor([3, 700])
    with torch.no_grad():
        new = wide(torch.cat([x, mask], 1), t, context)
        torch.testing.assert_close(new, unet(x, t, context), atol=1e-6, rtol=0)


def test_a_new_unet_predicts_zero():
    with torch.no_grad():
        y = new_unet(UNET, "")(torch.randn(1, 4, 8, 8), torch.tensor([5]), torch.randn(1, 3, 12))
    assert not y.any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers_per_block": 2}, r"which lacks decoder\.\S*"),
        ({"block_out_channels": (8, 32)}, r"only the first and last layers"),
        ({"latent_channels": 2}, r"is \(8, 16, 3, 3\), but \[model\] makes it \(4, 16, 3, 3\)"),
    ],
)
def test_what_does_not_fit_is_named(vae, tmp_path, changes, message):
    other = AutoencoderKL(replace(VAE, **changes))
    with pytest.raises(ArgumentError, match=message):
        begin_with(other, str(tmp_path / "vae"))


def test_a_missing_folder_is_named(vae):
    with pytest.raises(ArgumentError, match="start is 'nowhere', which is no folder"):
        begin_with(vae, "nowhere")
