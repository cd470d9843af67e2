"""What several test files share: random reference modules and a small random model folder."""

import math
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.assets import asset_path
from ldm.checkpoints.names import to_ours

# Read when diffusers and transformers are first imported, which only parity tests do.
for library in ("DIFFUSERS", "TRANSFORMERS"):
    os.environ.setdefault(f"{library}_VERBOSITY", "error")


def randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw weights that keep activations of about unit size, so that no error hides in zeros."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if parameter.ndim > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                middle = 1 if name.endswith("weight") else 0  # of a norm, or a bias
                parameter.uniform_(middle - 0.2, middle + 0.2, generator=generator)
    return module.requires_grad_(False).eval()


def ours_like(theirs: nn.Module, module_class: type[nn.Module], config: Any) -> nn.Module:
    """Our module with the very tensors of a reference module; every name must fit."""
    with torch.device("meta"):
        ours = module_class(config)
    ours.load_state_dict(to_ours(theirs.state_dict(), ours.state_dict()), strict=True, assign=True)
    return ours.requires_grad_(False).eval()


def difference(a: Tensor, b: Tensor) -> float:
    """The largest absolute difference; both must have one shape and be worth comparing."""
    assert a.shape == b.shape
    assert b.isfinite().all()
    assert b.std() > 1e-3
    return (a - b).abs().max().item()


def norm_eps(module: nn.Module) -> dict[str, float]:
    """The ε of every normalisation: too small a number to show in outputs of unit size."""
    parts = module.named_modules()
    return {name: m.eps for name, m in parts if isinstance(m, nn.GroupNorm | nn.LayerNorm)}


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Stable Diffusion of 64x64 pictures, saved by diffusers. Copy it to change it."""
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    unet = diffusers.UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(32, 64),
        layers_per_block=1,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=(2, 4),
        cross_attention_dim=32,
        norm_num_groups=8,
    )
    vae = diffusers.AutoencoderKL(
        sample_size=64,
        block_out_channels=(16, 16, 32, 32),
        layers_per_block=1,
        down_block_types=["DownEncoderBlock2D"] * 4,
        up_block_types=["UpDecoderBlock2D"] * 4,
        latent_channels=4,
        norm_num_groups=8,
    )
    text_config = transformers.CLIPTextConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=3, num_attention_heads=4
    )
    scheduler = diffusers.DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        steps_offset=1,
        clip_sample=False,
        set_alpha_to_one=False,
    )
    folder = tmp_path_factory.mktemp("model")
    diffusers.StableDiffusionPipeline(
        vae=randomize(vae, 1),
        text_encoder=randomize(transformers.CLIPTextModel(text_config), 2),
        tokenizer=transformers.CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer"),
        unet=randomize(unet, 3),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    ).save_pretrained(folder)
    return folder
