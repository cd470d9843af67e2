"""Configs: read what the reference libraries write, refuse what we cannot honour, write it back."""

import json
import re
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.config import (
    ClassifierConfig,
    CLIPTextConfig,
    Config,
    SchedulerConfig,
    UNetConfig,
    VAEConfig,
)
from ldm.errors import CheckpointError

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

UNET: dict[str, Any] = {
    "sample_size": 16,
    "in_channels": 9,
    "out_channels": 5,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "block_out_channels": [32, 96],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "norm_eps": 1e-6,
    "cross_attention_dim": 40,
    "attention_head_dim": [2, 4],
    "transformer_layers_per_block": [1, 3],
    "use_linear_projection": True,
}
TOLD: dict[str, Any] = {
    "center_input_sample": True,
    "dropout": 0.25,
    "resnet_time_scale_shift": "scale_shift",
    "num_class_embeds": 11,
}
PLAIN: dict[str, Any] = TOLD | {
    "sample_size": 32,
    "in_channels": 1,
    "out_channels": 2,
    "flip_sin_to_cos": False,
    "freq_shift": 1,
    "block_out_channels": [32, 96, 64],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"],
    "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    "downsample_type": "resnet",
    "upsample_type": "resnet",
    "downsample_padding": 0,
    "layers_per_block": 1,
    "norm_num_groups": 16,
    "norm_eps": 1e-6,
    "attention_head_dim": 16,
    "add_attention": False,
    "attn_norm_num_groups": 8,
    "class_embed_type": "timestep",
}
VAE: dict[str, Any] = {
    "in_channels": 1,
    "out_channels": 1,
    "block_out_channels": [32, 64, 96],
    "down_block_types": ["DownEncoderBlock2D"] * 3,
    "up_block_types": ["UpDecoderBlock2D"] * 3,
    "layers_per_block": 3,
    "latent_channels": 8,
    "norm_num_groups": 16,
    "sample_size": 96,
    "scaling_factor": 0.9,
}
TEXT: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 24,
    "intermediate_size": 40,
    "projection_dim": 10,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "max_position_embeddings": 20,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-6,
    "eos_token_id": 2,
}
NOISE: dict[str, Any] = {
    "num_train_timesteps": 500,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "steps_offset": 1,
}
# diffusers' scheduler classes, with settings of their own
SCHEDULERS: dict[str, dict[str, Any]] = {
    "DDPMScheduler": {"variance_type": "fixed_large", "clip_sample_range": 2.0},
    "DDIMScheduler": {"set_alpha_to_one": False, "rescale_betas_zero_snr": True},
    "PNDMScheduler": {"skip_prk_steps": True, "set_alpha_to_one": True},
    "DPMSolverMultistepScheduler": {"use_karras_sigmas": True, "euler_at_final": True},
    "EulerDiscreteScheduler": {"use_karras_sigmas": True},
}


def plain_with(**values: Any) -> dict[str, Any]:
    """The JSON of a U-Net without text, changed."""
    return {"_class_name": "UNet2DModel", **PLAIN, **values}


def plain(config: Any) -> dict[str, Any]:
    """A config as its JSON says it, without private keys."""
    values = json.loads(json.dumps(dict(config), default=list))
    return {key: value for key, value in values.items() if not key.startswith("_")}


def read_by(cls: Any, values: dict[str, Any]) -> dict[str, Any]:
    """The config of a diffusers object built from these values, without keys that it ignores."""
    with torch.device("meta" if issubclass(cls, torch.nn.Module) else "cpu"):
        return plain(cls.from_config(values).config)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("name", "config_class", "values"),
    [
        ("UNet2DConditionModel", UNetConfig, UNET),
        ("UNet2DConditionModel", UNetConfig, UNET | TOLD | {"downsample_padding": 0}),
        ("UNet2DModel", UNetConfig, PLAIN),
        ("UNet2DModel", UNetConfig, {"attention_head_dim": None}),
        ("UNet2DConditionModel", UNetConfig, {"cross_attention_dim": 768}),
        ("AutoencoderKL", VAEConfig, VAE),
    ],
)
def test_diffusers_reads_what_we_write(
    name: str, config_class: type[Config], values: dict[str, Any]
) -> None:
    cls = getattr(diffusers, name)
    want = read_by(cls, values)  # every key there is, most at the default
    ours = config_class.from_dict({**want, "_class_name": name, "_name_or_path": "x"})
    assert {key: plain(asdict(ours) | ours.to_dict())[key] for key in values} == values
    assert ours.to_dict()["_class_name"] == name
    assert read_by(cls, ours.to_dict()) == want
    assert config_class.from_dict(json.loads(json.dumps(ours.to_dict()))) == ours


@pytest.mark.parity
@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("full", [True, False])
def test_diffusers_reads_what_we_write_of_schedulers(name: str, full: bool) -> None:
    cls = getattr(diffusers, name)
    settings = NOISE | SCHEDULERS[name] if full else {}
    want = dict(cls(**settings).config)
    ours = SchedulerConfig.from_dict(want | {"_class_name": name})
    assert ours.sampler_class == ours.to_dict()["_class_name"] == name
    got = read_by(cls, ours.to_dict())  # and keys of other classes, kept for from_config
    assert {key: got[key] for key in plain(want)} == plain(want)
    assert SchedulerConfig.from_dict(ours.to_dict()) == ours


@pytest.mark.parity
@pytest.mark.parametrize("name", ["CLIPTextModel", "CLIPTextModelWithProjection"])
def test_transformers_reads_what_we_write(name: str) -> None:
    want = transformers.CLIPTextConfig(**TEXT, architectures=[name]).to_dict()
    ours = CLIPTextConfig.from_dict(want)
    assert {key: getattr(ours, key) for key in TEXT} == TEXT
    assert ours.architectures == (name,)
    got = transformers.CLIPTextConfig.from_dict(plain(ours.to_dict())).to_dict()
    assert {key: got[key] for key in TEXT} == TEXT
    assert got["architectures"] == [name]
    assert got["model_type"] == want["model_type"]


@pytest.mark.parity
def test_defaults_are_those_of_the_reference() -> None:
    """A folder may leave keys out: they mean the same to us."""
    assert UNetConfig.from_dict(
        read_by(diffusers.UNet2DConditionModel, {"cross_attention_dim": 768}) | {"sample_size": 64}
    ) == UNetConfig.from_dict({})
    name = {"_class_name": "UNet2DModel"}
    plain_unet = UNetConfig.from_dict(read_by(diffusers.UNet2DModel, {}) | name)
    assert plain_unet == UNetConfig.from_dict(name)
    vae = VAEConfig.from_dict(read_by(diffusers.AutoencoderKL, {}))
    for key in ("scaling_factor", "latent_channels", "in_channels", "norm_num_groups"):
        assert getattr(VAEConfig(), key) == getattr(vae, key)  # other sizes are always written
    text = transformers.CLIPTextConfig().to_dict()
    assert CLIPTextConfig.from_dict(text | {"architectures": ["CLIPTextModel"]}) == CLIPTextConfig()
    for name in SCHEDULERS:
        want = dict(getattr(diffusers, name)().config) | {"_class_name": name}
        if name == "DPMSolverMultistepScheduler":
            del want["variance_type"]  # of DDPM only
        noise = SchedulerConfig.from_dict({"_class_name": name})
        assert noise.timestep_spacing is None  # the sampler knows its own
        assert noise == replace(SchedulerConfig.from_dict(want), timestep_spacing=None)


NEUTRAL: list[tuple[type[Config], str, Any, Any]] = [
    (UNetConfig, "dual_cross_attention", False, True),
    (UNetConfig, "act_fn", "silu", "gelu"),
    (UNetConfig, "mid_block_scale_factor", 1, 2),
    (UNetConfig, "time_embedding_type", "positional", "fourier"),
    (UNetConfig, "conv_in_kernel", 3, 1),
    (UNetConfig, "a_key_of_tomorrow", None, 7),
    (ClassifierConfig, "act_fn", "silu", "relu"),
    (ClassifierConfig, "time_embedding_type", "positional", "learned"),
    (ClassifierConfig, "a_key_of_tomorrow", None, 7),
    (VAEConfig, "act_fn", "silu", "relu"),
    (VAEConfig, "mid_block_add_attention", True, False),
    (VAEConfig, "use_quant_conv", True, False),
    (VAEConfig, "shift_factor", None, 0.1),
    (VAEConfig, "latents_mean", None, [0.0]),
    (SchedulerConfig, "use_lu_lambdas", False, True),
    (SchedulerConfig, "use_flow_sigmas", False, True),
    (SchedulerConfig, "interpolation_type", "linear", "log_linear"),
    (SchedulerConfig, "timestep_type", "discrete", "continuous"),
    (SchedulerConfig, "lambda_min_clipped", float("-inf"), -5.1),
    (SchedulerConfig, "sigma_max", None, 80.0),
]


@pytest.mark.parametrize(("config_class", "key", "neutral", "other"), NEUTRAL)
def test_what_we_do_not_implement_must_be_off(
    config_class: type[Config], key: str, neutral: Any, other: Any
) -> None:
    plain_config = config_class.from_dict({})
    assert config_class.from_dict({key: neutral}) == plain_config
    message = f"there: {key} is {re.escape(repr(other))}, .*works$"
    with pytest.raises(CheckpointError, match=message):
        config_class.from_dict({key: other}, source="there")


@pytest.mark.parametrize(
    ("config_class", "values", "message"),
    [
        (UNetConfig, {"block_out_channels": [32, 64]}, "down_block_types has 4 blocks for 2"),
        (UNetConfig, UNET | {"up_block_types": ["UpBlock2D"] * 3}, "up_block_types has 3 blocks"),
        (UNetConfig, UNET | {"down_block_types": ["AttnDownBlock2D"] * 2}, "'AttnDownBlock2D'"),
        (UNetConfig, UNET | {"attention_head_dim": [2, 4, 8]}, "attention_head_dim has 3 values"),
        (UNetConfig, UNET | {"attention_head_dim": 7}, "32 channels cannot be split into 7"),
        (UNetConfig, UNET | {"attention_head_dim": 0}, "into 0 attention heads"),
        (UNetConfig, UNET | {"norm_num_groups": 12}, "norm_num_groups 12 does not divide"),
        (UNetConfig, UNET | {"transformer_layers_per_block": [1]}, "transformer_layers_per_block"),
        (UNetConfig, UNET | {"layers_per_block": [1]}, "layers_per_block has 1 values for 2"),
        (UNetConfig, UNET | {"layers_per_block": [1, 0]}, "expected 1 to 100 a level"),
        (UNetConfig, plain_with(layers_per_block=[1, 1, 2]), "UNet2DModel has one number"),
        (UNetConfig, UNET | {"mid_block_type": "UNetMidBlock2DSimpleCrossAttn"}, "mid_block_type"),
        (UNetConfig, UNET | {"only_cross_attention": [True]}, "only_cross_attention has 1 values"),
        (UNetConfig, UNET | {"transformer_layers_per_block": [1, [2]]}, "reverse_.* is missing"),
        (
            UNetConfig,
            UNET
            | {
                "transformer_layers_per_block": [1, [2]],
                "reverse_transformer_layers_per_block": [[2], 1],
            },
            r"holds \(2,\) for a block of 2 layers",
        ),
        (UNetConfig, UNET | {"reverse_transformer_layers_per_block": [1]}, "reverse_.* 1 values"),
        (UNetConfig, UNET | {"transformer_layers_per_block": [1, 101]}, "expected 0 to 100"),
        (UNetConfig, UNET | {"cross_attention_dim": [8, 8]}, "cross_attention_dim"),
        (UNetConfig, UNET | {"block_out_channels": "wide"}, "block_out_channels is .wide."),
        (
            UNetConfig,
            UNET | {"cross_attention_dim": None},
            "does not go with .*UNet2DConditionModel",
        ),
        (UNetConfig, UNET | {"downsample_type": "resnet"}, "UNet2DConditionModel has no such key"),
        (UNetConfig, UNET | {"add_attention": False}, "UNet2DConditionModel has no such key"),
        (UNetConfig, UNET | {"class_embed_type": "projection"}, "class_embed_type .*'projection'"),
        (UNetConfig, {"_class_name": "UNet3DConditionModel"}, "_class_name .*UNet3DCond.*UNet2DM"),
        (UNetConfig, plain_with(cross_attention_dim=8), "does not go with .*'UNet2DModel'"),
        (UNetConfig, plain_with(use_linear_projection=True), "UNet2DModel has no such key"),
        (UNetConfig, plain_with(mid_block_type=None), "mid_block_type is None; .*UNetMidBlock2D"),
        (UNetConfig, plain_with(time_embedding_type="fourier"), "time_embedding_type is 'fourier'"),
        (UNetConfig, plain_with(time_embedding_dim=64), "time_embedding_dim is 64"),
        (UNetConfig, plain_with(act_fn="gelu"), "act_fn is 'gelu'"),
        (UNetConfig, plain_with(resnet_time_scale_shift="spatial"), "'spatial'; .*'scale_shift'"),
        (UNetConfig, plain_with(downsample_type="fir"), "downsample_type is 'fir'"),
        (UNetConfig, plain_with(upsample_type="fir"), "upsample_type is 'fir'"),
        (UNetConfig, plain_with(downsample_padding=2), "downsample_padding is 2; expected 0"),
        (UNetConfig, plain_with(dropout=1.0), r"dropout is 1.0; expected \[0, 1\)"),
        (UNetConfig, plain_with(num_class_embeds=0), "num_class_embeds is 0"),
        (UNetConfig, plain_with(attention_head_dim=7), "96 channels .* attention_head_dim 7"),
        (UNetConfig, plain_with(attention_head_dim=0), "attention_head_dim 0"),
        (UNetConfig, plain_with(attention_head_dim=[8, 8, 8]), "attention_head_dim .8, 8, 8"),
        (UNetConfig, plain_with(attn_norm_num_groups=7), "attn_norm_num_groups 7 does not divide"),
        (UNetConfig, plain_with(down_block_types=["DownBlock2D"]), "down_block_types has 1 block"),
        (
            UNetConfig,
            plain_with(down_block_types=["CrossAttnDownBlock2D"] * 3),
            "down_block_types: .*'CrossAttnDownBlock2D'; .*'ResnetDownsampleBlock2D'",
        ),
        (
            UNetConfig,
            plain_with(up_block_types=["AttnSkipUpBlock2D"] * 3),
            "up_block_types: .*'AttnSkipUpBlock2D'; .*'ResnetUpsampleBlock2D'",
        ),
        (ClassifierConfig, {"_class_name": "UNet2DModel"}, "_class_name is 'UNet2DModel'"),
        (ClassifierConfig, {"num_classes": 1}, "num_classes is 1; expected 2"),
        (
            ClassifierConfig,
            {"sample_size": 28},
            "sample_size is 28, which cannot be halved 3 times",
        ),
        (ClassifierConfig, {"attention_head_dim": 48}, "256 channels .* attention_head_dim 48"),
        (ClassifierConfig, {"down_block_types": ["UpBlock2D"] * 4}, "'UpBlock2D'; .*'DownBlock2D'"),
        (VAEConfig, {"norm_num_groups": 0}, "norm_num_groups 0 does not divide"),
        (VAEConfig, {"block_out_channels": 4}, "block_out_channels is 4"),
        (VAEConfig, VAE | {"down_block_types": ["AttnDownEncoderBlock2D"]}, "AttnDownEncoder"),
        (CLIPTextConfig, {"hidden_act": "relu"}, "hidden_act is 'relu'"),
        (CLIPTextConfig, {"num_attention_heads": 7}, "512 is not divisible by .* 7"),
        (CLIPTextConfig, {"num_attention_heads": 0}, "wrong type|num_attention_heads"),
    ],
)
def test_impossible_values(
    config_class: type[Config], values: dict[str, Any], message: str
) -> None:
    with pytest.raises(CheckpointError, match=message):
        config_class.from_dict(values)


def test_text_configs_may_hold_generation_settings() -> None:
    """Before transformers 4.2x they were written into every config.json."""
    config = CLIPTextConfig.from_dict({"num_beams": 1, "top_k": 50, "length_penalty": 1.0})
    assert config == CLIPTextConfig()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "config.json does not exist"),
        (b'{"in_channels": ', "cannot read .*config.json as JSON"),
        (b"\xff\xfe\x00", "cannot read .*config.json as JSON"),
        (b"[1]", "holds a list; expected a JSON object"),
        (b'{"in_channels": 4, "dual_cross_attention": true}', "config.json: dual_cross_attention"),
    ],
)
def test_broken_files(tmp_path: Path, content: bytes | None, message: str) -> None:
    path = tmp_path / "config.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=message) as caught:
        UNetConfig.from_file(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
