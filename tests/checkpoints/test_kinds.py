"""``ldm-info`` and loading name every kind of file that people have, from names and shapes."""

from __future__ import annotations

import time
from collections.abc import Mapping
from pathlib import Path

import pytest

from ldm.checkpoints.describe import describe, describe_header
from ldm.checkpoints.family import UNET, describe_other, detect
from ldm.checkpoints.header import Header, TensorInfo
from ldm.checkpoints.notes import LONGEST, clean, notes
from ldm.errors import CheckpointError
from tests.helpers.original_layouts import clip, layout, open_clip, unet, vae
from tests.helpers.sparse import write_sparse
from tests.helpers.timing import info_seconds

Shapes = Mapping[str, tuple[int, ...]]
TEXT = "transformer_blocks.0.attn2.to_k.weight"


def rows(shapes: Shapes, metadata: Mapping[str, str] | None = None) -> dict[str, str]:
    tensors = {name: TensorInfo("F16", shape) for name, shape in shapes.items()}
    return dict(describe_header(Header(tensors, dict(metadata or {})), Path("x.safetensors")))


def pair(stem: str, width: int = 64) -> Shapes:
    """A LoRA's two tensors."""
    return {f"{stem}.lora_down.weight": (4, width), f"{stem}.lora_up.weight": (64, 4)}


def inner(names: Mapping[str, tuple[int, ...]], prefix: str) -> Shapes:
    return {f"{prefix}{name}": shape for name, shape in names.items()}


CN = "control_model.input_blocks.1.1"
# kind → (names and shapes as its tool writes them, the words of its rows, those of the refusal)
KINDS: dict[str, tuple[Shapes, str, str]] = {
    "ControlNet, original": (
        {f"{CN}.{TEXT}": (320, 768), "control_model.zero_convs.0.0.weight": (320, 320, 1, 1)},
        "ControlNet, Stable Diffusion 1.x", "is a ControlNet",
    ),
    "ControlNet, diffusers, XL": (
        {"controlnet_cond_embedding.conv_in.weight": (16, 3, 3, 3),
         f"down_blocks.1.attentions.0.{TEXT}": (640, 2048), "conv_in.weight": (320, 4, 3, 3)},
        "ControlNet, Stable Diffusion XL", "is a ControlNet",
    ),
    "ControlNet of Flux": (
        {"controlnet_blocks.0.weight": (8, 8), "transformer_blocks.0.attn.to_q.weight": (8, 8)},
        "ControlNet", "is a ControlNet",
    ),
    "Control-LoRA": (
        {"lora_controlnet": (), "input_blocks.1.0.in_layers.2.down": (8, 8, 3, 3)},
        "Control-LoRA", "is a Control-LoRA",
    ),
    "ControlNet-LLLite": (
        {"lllite_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_k.down.0.weight": (8, 8)},
        "ControlNet-LLLite", "is a ControlNet-LLLite",
    ),
    "SparseCtrl": (
        {"controlnet_cond_embedding.conv_in.weight": (8, 3, 3, 3),
         "down_blocks.0.motion_modules.0.temporal_transformer.norm.weight": (8,)},
        "SparseCtrl", "is a SparseCtrl",
    ),
    "T2I-Adapter, original": (
        {"body.0.block1.weight": (8, 8, 3, 3), "conv_in.weight": (8, 192, 3, 3)},
        "T2I-Adapter", "is a T2I-Adapter",
    ),
    "T2I-Adapter, original, light": (
        {"body.0.body.0.block1.weight": (8, 8, 3, 3), "body.0.in_conv.weight": (8, 192, 1, 1)},
        "T2I-Adapter", "is a T2I-Adapter",
    ),
    "T2I-Adapter, diffusers": (
        {"adapter.body.0.resnets.0.block1.weight": (8, 8, 3, 3), "adapter.x": (8,)},
        "T2I-Adapter", "is a T2I-Adapter",
    ),
    "IP-Adapter": (
        {"image_proj.proj.weight": (8, 8), "ip_adapter.1.to_k_ip.weight": (320, 2048)},
        "IP-Adapter, Stable Diffusion XL", "is an IP-Adapter",
    ),
    "IP-Adapter with a LoRA": (
        {"image_proj.norm.weight": (8,), **pair("ip_adapter.0.to_q_lora")},
        "IP-Adapter", "is an IP-Adapter",
    ),
    "motion module": (
        {"down_blocks.0.motion_modules.0.temporal_transformer.proj_in.weight": (8, 8)},
        "motion module", "is a motion module",
    ),
    "VAE": (vae(), "VAE", "is a VAE"),
    "VAE of 16 channels": (
        {"decoder.conv_in.weight": (512, 16, 3, 3), "decoder.mid.block_1.norm1.weight": (512,)},
        "VAE of 16 channels (another model's)", "is a VAE",
    ),
    "VAE, diffusers": (
        {"encoder.down_blocks.0.resnets.0.conv1.weight": (8, 8, 3, 3),
         "decoder.conv_in.weight": (512, 4, 3, 3), "quant_conv.weight": (8, 8, 1, 1)},
        "VAE", "is a VAE",
    ),
    "TAESD, original": (
        {"1.weight": (64, 4, 3, 3), "3.conv.0.weight": (64, 64, 3, 3), "3.conv.2.bias": (64,)},
        "TAESD", "is a TAESD",
    ),
    "TAESD, diffusers": (
        {"decoder.layers.0.weight": (64, 4, 3, 3), "decoder.layers.2.conv.0.weight": (8, 8, 3, 3),
         "encoder.layers.0.bias": (64,)},
        "TAESD", "is a TAESD",
    ),
    "TAESD of one file": (
        {"taesd_decoder.1.weight": (64, 16, 3, 3), "taesd_decoder.3.conv.0.weight": (64, 64, 3, 3)},
        "TAESD of 16 channels (another model's)", "--vae FILE, or --preview-vae FILE",
    ),
    "CLIP, OpenAI's": (clip(), "CLIP text encoder", "is a CLIP text encoder"),
    "CLIP, OpenCLIP's": (open_clip(64, 2), "CLIP text encoder", "is a CLIP text encoder"),
    "CLIP of pictures": (
        {"vision_model.encoder.layers.0.self_attn.q_proj.weight": (8, 8), "x.y": (1,), "z": (1,)},
        "CLIP image encoder", "is a CLIP image encoder",
    ),
    "T5": (
        {"encoder.block.0.layer.0.SelfAttention.q.weight": (8, 8), "shared.weight": (8, 8)},
        "T5 text encoder", "is a T5 text encoder",
    ),
    "U-Net, original": (
        {k: v for k, v in unet(320, (1, 2, 4, 4), (4, 2, 1), (1, 1, 1, 1), 768, False).items()},
        "U-Net, Stable Diffusion 1.x", "is a U-Net",
    ),
    "U-Net, diffusers": (
        {f"down_blocks.0.attentions.0.{TEXT}": (320, 1024), "conv_in.weight": (320, 4, 3, 3)},
        "U-Net, Stable Diffusion 2.x", "is a U-Net",
    ),
    "upscaler, ESRGAN": (
        {"model.0.weight": (64, 3, 3, 3), "model.1.sub.0.RDB1.conv1.0.weight": (32, 64, 3, 3)},
        "upscaler (ESRGAN)", "is an upscaler",
    ),
    "upscaler, Real-ESRGAN": (
        {"params_ema.conv_first.weight": (64, 3, 3, 3), "params_ema.body.0.rdb1.conv1.bias": (8,)},
        "upscaler (ESRGAN)", "is an upscaler",
    ),
    "Flux": (
        inner({"double_blocks.0.img_attn.qkv.weight": (8, 8)}, UNET),
        "model of Flux (not supported)", "is of Flux, not of Stable Diffusion",
    ),
    "Stable Diffusion 3 with its VAE": (
        {f"{UNET}joint_blocks.0.x_block.attn.qkv.weight": (8, 8),
         "first_stage_model.decoder.conv_in.weight": (8, 16, 3, 3)},
        "model of Stable Diffusion 3 (not supported)", "is of Stable Diffusion 3, not of",
    ),
    "Stable Cascade": (
        {"down_blocks.0.0.channelwise.0.weight": (8, 8), "clf.1.weight": (8, 8)},
        "model of Stable Cascade (not supported)", "is of Stable Cascade",
    ),
    "LoRA of kohya": (
        pair("lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k", 768),
        "LoRA, Stable Diffusion 1.x", "is a LoRA, not a model; give it beside one: --lora",
    ),
    "LoRA of Flux": (
        pair("lora_unet_double_blocks_0_img_attn_proj"),
        "LoRA, Flux (not supported)", "is a LoRA for Flux, not a model; those are not supported",
    ),
    "LoRA of Flux, diffusers'": (
        {"transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight": (4, 8),
         "transformer.single_transformer_blocks.0.attn.to_q.lora_B.weight": (8, 4)},
        "LoRA, Flux (not supported)", "is a LoRA for Flux",
    ),
    "LoRA of Stable Diffusion 3": (
        pair("lora_unet_joint_blocks_0_context_block_attn_qkv"),
        "LoRA, Stable Diffusion 3 (not supported)", "is a LoRA for Stable Diffusion 3",
    ),
    "embedding": ({"emb_params": (3, 768)}, "textual inversion, Stable Diffusion 1.x", "inversion"),
    "embedding of one vector": ({"<cat>": (1024,)}, "textual inversion, Stable Diffusion 2.x",
                                "inversion"),
    "embedding of XL": ({"clip_l": (2, 768), "clip_g": (2, 1280)},
                        "textual inversion, Stable Diffusion XL", "inversion"),
    "nothing known": ({f"strange.{i}": (1,) for i in range(4)}, "unknown", "it holds strange.0"),
}  # fmt: skip


@pytest.mark.parametrize("name", KINDS)
def test_a_kind_is_named(name: str) -> None:
    shapes, words, refusal = KINDS[name]
    found = rows(shapes)
    told = found["kind"] if ", " not in words else f"{found['kind']}, {found['for']}"
    assert told == words
    assert refusal in describe_other(shapes)
    with pytest.raises(CheckpointError, match=r"^x\.safetensors is "):
        detect(shapes, {}, "x.safetensors")


def test_vectors_of_an_embedding() -> None:
    assert rows({"<cat>": (768,)})["vectors"] == "1 × 768"
    assert rows({"emb_params": (3, 768)})["vectors"] == "3 × 768"
    assert rows({"clip_l": (2, 768), "clip_g": (2, 1280)})["vectors"] == "2 × 768, 2 × 1280"


def change(family: str, channels: int, more: Shapes) -> Shapes:
    return layout(family, channels) | more


TASKS = {
    "8 input channels, of which only": change("sd2", 8, {}),
    "Zero123": change("sd1", 8, {"cc_projection.weight": (768, 772)}),
    "x4 upscaler": change("sd2", 7, {f"{UNET}label_emb.weight": (1000, 1024)}),
    "unCLIP": change("sd2", 4, {f"{UNET}label_emb.0.0.weight": (1280, 2048)}),
    "unCLIP, with its embedder": change("sd2", 4, {"embedder.model.visual.proj": (8, 8)}),
    "unCLIP, small": change("sd2", 4, {f"{UNET}label_emb.0.0.weight": (1280, 1536)}),
    "Stable Video Diffusion": change(
        "sd2", 8, {f"{UNET}input_blocks.1.0.time_stack.in_layers.0.weight": (320,)}
    ),
    "unknown task, of 12 input channels": change("sdxl", 12, {}),
}


@pytest.mark.parametrize("name", TASKS)
def test_unets_of_other_tasks_are_refused_by_name(name: str) -> None:
    words = name.split(", with")[0].split(", small")[0]
    with pytest.raises(CheckpointError, match=f"x is a U-Net of .*{words}.* not supported"):
        detect(TASKS[name], {}, "x")
    assert words in "".join(rows(TASKS[name])[row] for row in ("kind", "reason"))
    assert "not supported" in rows(TASKS[name])["kind"]


@pytest.mark.parametrize(
    ("family", "channels", "want"),
    [
        ("sd1", 8, "Stable Diffusion 1.x, instruct-pix2pix, 8 channels: edits by instruction"),
        ("sdxl", 8, "Stable Diffusion XL, instruct-pix2pix, 8 channels: edits by instruction"),
        ("sd2", 5, "Stable Diffusion 2.x, depth to image"),
        ("sd1", 9, "Stable Diffusion 1.x, inpainting"),
    ],
)
def test_tasks_are_named(family: str, channels: int, want: str) -> None:
    assert rows(layout(family, channels))["kind"] == want
    alone = {k.removeprefix(UNET): v for k, v in layout(family, channels).items() if UNET in k}
    assert rows(alone)["kind"] == "U-Net"
    assert rows(alone)["for"] == want


def test_playground_is_described_although_it_is_refused() -> None:
    found = rows(layout("sdxl") | {"edm_mean": (4,), "edm_std": (4,)})
    assert found["kind"] == "Stable Diffusion XL (not supported)"
    assert "EDM formulation" in found["reason"]


def test_what_states_a_prediction_is_shown() -> None:
    found = rows(layout("sdxl") | {"v_pred": (0,)}, {"modelspec.prediction_type": "epsilon"})
    assert found["prediction type"] == "v_prediction"
    assert found["stated by"] == "the key v_pred; but modelspec.prediction_type says epsilon"


def test_missing_parts_are_shown() -> None:
    found = rows(inner(unet(320, (1, 2, 4, 4), (4, 2, 1), (1, 1, 1, 1), 768, False), UNET))
    assert found["vae"] == "missing: --vae supplies it"
    assert found["text_encoder"] == "missing: --text-encoder supplies it"


@pytest.mark.parametrize(
    ("metadata", "want"),
    [
        ({"modelspec.architecture": "stable-diffusion-xl-v1-base/lora"}, "Stable Diffusion XL"),
        ({"modelspec.architecture": "stable-diffusion-v1/lora"}, "Stable Diffusion 1.x"),
        ({"ss_base_model_version": "sdxl_base_v1-0"}, "Stable Diffusion XL"),
        ({"ss_base_model_version": "sd_v2_v"}, "Stable Diffusion 2.x"),
        ({"ss_base_model_version": "flux1"}, "Flux"),
        ({}, "unknown"),
    ],
)
def test_the_base_of_a_lora_of_which_no_layer_tells(metadata: dict, want: str) -> None:
    lora = pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q")
    assert rows(lora, metadata)["for"].startswith(want)
    by_layer = pair("lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k", 1024)
    assert rows(by_layer, metadata)["for"] == "Stable Diffusion 2.x"


def test_the_metadata_that_people_look_for() -> None:
    metadata = {
        "modelspec.trigger_phrase": "zxdog", "modelspec.usage_hint": "say zxcat",
        "modelspec.description": "cats\nof mine", "modelspec.tags": "animal",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/lora", "ss_network_alpha": "2.0",
        "ss_clip_skip": "47", "ss_training_comment": "at home", "ss_epoch": "7",
        "ss_sd_model_name": "None", "trigger_word": "ohwx", "general.license": "mit",
        "ss_tag_frequency": '{"a": {"cat": 3, "dog": 9}}', "workflow": "{}",
    }  # fmt: skip
    found = dict(notes(metadata))
    assert found == {
        "trigger phrase": "zxdog", "usage hint": "say zxcat", "description": "cats of mine",
        "tags (metadata)": "animal", "architecture": "stable-diffusion-xl-v1-base/lora",
        "network alpha": "2.0", "clip skip": "47", "comment": "at home", "epoch": "7",
        "trigger words": "ohwx", "licence": "mit", "tags": "dog, cat",
    }  # fmt: skip


@pytest.mark.parametrize(
    "text",
    ['{"a": {"x": 1e999}}', '{"a": {"x": null}}', "[1]", "{" * 100_000, "nothing", '{"a":1}'],
)
def test_tags_in_any_form(text: str) -> None:
    assert notes({"ss_tag_frequency": text}) == []


def test_notes_cannot_steer_a_terminal_or_fill_it() -> None:
    assert clean("a\x1b[2J\u202eb") == "a [2J b"
    started = time.monotonic()
    text = "x" * 50_000_000
    assert len(clean(text)) == LONGEST + 1
    assert notes({"ss_tag_frequency": text}) == []
    assert time.monotonic() - started < 1


def test_many_and_long_names_are_named_in_bounded_time() -> None:
    started = time.process_time()
    rows({f"{'a.' * 100_000}{i}": (1,) for i in range(50)})
    rows({f"blocks.{i}.attn_" * 5: (1,) for i in range(100_000)})
    assert time.process_time() - started < 20


def test_info_is_quick_and_needs_no_torch(tmp_path: Path) -> None:
    """Of a file of full size; the interpreter's start is in it."""
    path = write_sparse(tmp_path / "x.sft", layout("sdxl"))
    assert info_seconds(path) < 0.6
    assert ("kind", "Stable Diffusion XL") in describe(path)
