"""Full-size files of every family, by names and shapes: nothing missing, nothing left over."""

from __future__ import annotations

import json
import math

import pytest
import torch

from ldm.checkpoints.family import UNET, VAE, detect, read_family
from ldm.checkpoints.folder import empty
from ldm.checkpoints.names import to_ours
from ldm.checkpoints.original import read_original, write_original
from ldm.clip import CLIPTextEncoder
from ldm.errors import CheckpointError
from ldm.loading.single_file import TEXT_NAMES, names_of
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from tests.helpers.original_layouts import layout

# What published files hold and no picture needs; SD 2.x leaves its text's last layer out.
UNUSED = {
    "sd1": {"cond_stage_model.transformer.text_model.embeddings.position_ids"},
    "sd2": {"cond_stage_model.model.logit_scale", "cond_stage_model.model.text_projection"},
    "sdxl": {
        "conditioner.embedders.0.transformer.text_model.embeddings.position_ids",
        "conditioner.embedders.1.model.logit_scale",
    },
    "sdxl_refiner": {"conditioner.embedders.0.model.logit_scale"},
}
# As published with the models.
PARAMETERS = {
    "sd1": {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": 83_653_863, "text_encoder": 340_387_840},
    "sdxl": {
        "unet": 2_567_463_684,
        "vae": 83_653_863,
        "text_encoder": 123_060_480,
        "text_encoder_2": 694_659_840,
    },
    "sdxl_refiner": {"vae": 83_653_863, "text_encoder_2": 694_659_840},
}


@pytest.mark.parametrize("in_channels", [4, 9])
@pytest.mark.parametrize("name", UNUSED)
def test_a_full_size_file(name: str, in_channels: int) -> None:
    shapes = layout(name, in_channels)
    unused = UNUSED[name] | {key for key in shapes if name == "sd2" and "resblocks.23." in key}
    family = detect(shapes, {}, "file")
    assert family.id == name
    assert family.unet.in_channels == in_channels
    tensors = {key: torch.empty(shape, device="meta") for key, shape in shapes.items()}
    parts = {
        "unet": (UNet, family.unet, UNET, names_of(family.unet), False),
        "vae": (AutoencoderKL, family.vae, VAE, names_of(family.vae), True),
    }
    for text in family.texts:
        parts[text.part] = (
            CLIPTextEncoder, text.config, text.prefix, TEXT_NAMES[text.names], False,
        )  # fmt: skip
    written = {}
    for part, (cls, config, prefix, rename, convolutions) in parts.items():
        module = empty(cls, config)
        expected = {key: value.shape for key, value in module.state_dict().items()}
        found = read_original(tensors, expected, prefix, rename)
        assert {key: value.shape for key, value in found.items()} == expected
        count = sum(math.prod(shape) for shape in expected.values())
        if part in PARAMETERS[name] and (in_channels == 4 or part != "unet"):
            assert count == PARAMETERS[name][part]
        written |= write_original(module.state_dict(), prefix, rename, convolutions)
    assert {key: tuple(value.shape) for key, value in written.items()} == {
        key: shape for key, shape in shapes.items() if key not in unused
    }


@pytest.mark.parametrize(
    ("change", "said", "zero_snr"),
    [
        ({}, "epsilon", False),
        ({"v_pred": (0,)}, "v_prediction", False),
        ({"v_pred": (0,), "ztsnr": (0,)}, "v_prediction", True),
    ],
)
def test_marker_keys(change: dict, said: str, zero_snr: bool) -> None:
    family = detect(layout("sdxl") | change, {}, "file")
    assert family.scheduler.prediction_type == said
    assert family.scheduler.rescale_betas_zero_snr == zero_snr
    assert family.certain


def test_prediction_type_of_sd2() -> None:
    """The file says it, or the .ckpt's step does, or it is a guess; an argument overrides."""
    shapes = layout("sd2")
    assert detect(shapes, {}, "file").scheduler.prediction_type == "v_prediction"
    assert not detect(shapes, {}, "file").certain
    base = detect(shapes, {}, "file", global_step=875_000)
    assert (base.scheduler.prediction_type, base.certain) == ("epsilon", True)
    assert base.unet.sample_size == 64
    told = detect(shapes, {"modelspec.prediction_type": "v"}, "file")
    assert (told.scheduler.prediction_type, told.certain) == ("v_prediction", True)
    assert told.unet.sample_size == 96
    forced = detect(shapes | {"v_pred": (0,)}, {}, "file", prediction_type="epsilon")
    assert forced.scheduler.prediction_type == "epsilon"
    inpainting = detect(layout("sd2", 9), {}, "file")
    assert (inpainting.scheduler.prediction_type, inpainting.certain) == ("epsilon", True)


def test_lcm_is_seen_by_its_guidance_embedding() -> None:
    family = detect(layout("sd1") | {f"{UNET}time_embed.cond_proj.weight": (320, 256)}, {}, "file")
    assert family.unet.time_cond_proj_dim == 256
    assert family.scheduler.sampler_class == "LCMScheduler"


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"lora_unet_down_blocks_0.lora_down.weight": (4, 320)}, "is a LoRA"),
        ({"unet.x.processor.to_q_lora.down.weight": (4, 320)}, "is a LoRA"),
        ({"lora_unet_x.hada_w1_a": (4, 320), "lora_unet_x.alpha": ()}, "is a LoHa"),
        ({f"first_stage_model.decoder.{i}": (1,) for i in range(4)}, "is a VAE"),
        ({"emb_params": (2, 768)}, "is a textual inversion"),
        ({f"control_model.{i}": (1,) for i in range(4)}, "is a ControlNet"),
        ({f"strange.{i}": (1,) for i in range(4)}, "it holds strange.0, strange.1"),
        ({f"{UNET}input_blocks.0.0.weight": (320, 4, 3, 3),
          f"{UNET}input_blocks.1.1.transformer_blocks.0.attn2.to_k.weight": (320, 99)}, "width 99"),
    ],
)  # fmt: skip
def test_other_files_are_named(shapes: dict, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        detect(shapes, {}, "file")


def test_families_read() -> None:
    for name in UNUSED:
        assert read_family(name).id == name


@pytest.mark.parity
@pytest.mark.parametrize("name", UNUSED)
def test_a_full_size_folder(name: str) -> None:
    """The modules that diffusers and transformers build of our configs have our names and shapes.

    And the configs that they write of theirs, with all keys of today, are ours again.
    """
    diffusers = pytest.importorskip("diffusers")
    transformers = pytest.importorskip("transformers")
    family = read_family(name)
    pairs = [
        (UNet, family.unet, diffusers.UNet2DConditionModel),
        (AutoencoderKL, family.vae, diffusers.AutoencoderKL),
    ]
    for text in family.texts:
        kind = text.config.architectures[0]
        pairs.append((CLIPTextEncoder, text.config, getattr(transformers, kind)))
    for ours, config, theirs in pairs:
        with torch.device("meta"):
            if ours is CLIPTextEncoder:
                module = theirs(transformers.CLIPTextConfig(**config.to_dict()))
                written = module.config.to_dict() | {"architectures": list(config.architectures)}
            else:
                module = theirs.from_config(config.to_dict())
                written = dict(module.config)
        expected = empty(ours, config).state_dict()
        shapes = {key: value.shape for key, value in expected.items()}
        found = to_ours(module.state_dict(), shapes)
        assert {key: value.shape for key, value in found.items()} == shapes
        assert type(config).from_dict(json.loads(json.dumps(written))) == config
