"""LoRA files for other models, by names and shapes: refused by what they are for, or told in part.

Every tensor is accounted for: applied, left out with a reason, or unknown.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from ldm.adapters.lora import Loras
from ldm.errors import CheckpointError
from tests.adapters.test_lora_layouts import FILE, full_size, on_meta
from tests.helpers import lora_layouts
from tests.helpers.original_layouts import Shapes

TEXT_LAYERS = ("self_attn_q_proj", "self_attn_k_proj", "self_attn_v_proj", "self_attn_out_proj")


def pair(stem: str, inner: int = 64, outer: int = 64, ends: str = "kohya") -> Shapes:
    down, up = {"kohya": ("lora_down", "lora_up"), "peft": ("lora_A", "lora_B")}[ends]
    return {f"{stem}.{down}.weight": (4, inner), f"{stem}.{up}.weight": (outer, 4)}


def clip(prefix: str = "lora_te1_") -> Shapes:
    """CLIP-L's layers, which Flux, SD 3 and Stable Diffusion 1.x and XL have alike."""
    shapes: Shapes = {}
    for i in range(12):
        for name in TEXT_LAYERS:
            shapes |= pair(f"{prefix}text_model_encoder_layers_{i}_{name}", 768, 768)
    return shapes


# The names of the layers, as the tools of each model write them.
OTHERS = {
    "Flux": [
        "lora_unet_double_blocks_0_img_attn_qkv",
        "lora_unet_single_blocks_37_linear1",
        "transformer.single_transformer_blocks.0.attn.to_q",
        "diffusion_model.double_blocks.0.txt_attn.proj",
        "base_model.model.single_transformer_blocks.1.proj_mlp",
        "lora_transformer_single_transformer_blocks_0_attn_to_k",
        "lycoris_single_blocks_1_linear2",
    ],
    "Stable Diffusion 3": [
        "lora_unet_joint_blocks_0_context_block_attn_qkv",
        "transformer.transformer_blocks.0.attn.add_k_proj",
        "diffusion_model.joint_blocks.3.x_block.mlp.fc1",
    ],
    "HunyuanVideo": ["lora_unet_double_blocks_0_img_mlp_fc1"],
    "Chroma": ["lora_unet_distilled_guidance_layer_layers_0_in_layer"],
    "Qwen-Image": ["transformer.transformer_blocks.0.img_mlp.net.0.proj"],
    "HiDream": ["diffusion_model.double_stream_blocks.0.block.attn1.to_q"],
    "AuraFlow": ["transformer.joint_transformer_blocks.0.attn.to_q"],
    "Hunyuan-DiT": ["lora_unet_blocks_0_attn1_Wqkv"],
    "Wan": [
        "diffusion_model.blocks.0.self_attn.q",
        "lora_unet_blocks_0_cross_attn_k",
        "blocks.0.ffn.0",
    ],
    "Lumina or Z-Image": ["diffusion_model.layers.0.attention.qkv"],
    "Mochi": ["transformer_blocks.0.attn.qkv", "diffusion_model.blocks.0.attn.qkv_x"][1:],
    "Stable Cascade": ["lora_prior_unet_down_blocks_0_1_attention_attn_in_proj"],
    "AnimateDiff": [
        "down_blocks.0.motion_modules.0.temporal_transformer.transformer_blocks.0."
        "attention_blocks.0.processor.to_q_lora"
    ],
    "Stable Video Diffusion": [
        "unet.down_blocks.0.attentions.0.temporal_transformer_blocks.0.attn1.to_q"
    ],
    "a transformer, such as PixArt": [
        "transformer.transformer_blocks.0.attn1.to_q",
        "lora_unet_transformer_blocks_0_attn1_to_q",
        "diffusion_model.transformer_blocks.0.attn1.to_q",
    ],
}


@pytest.mark.parametrize("family", ["sd1", "sdxl"])
@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_named(family: str, name: str, text: bool) -> None:
    """However much of their text encoder would fit, and even if told to go on."""
    for stem in OTHERS[name]:
        ends = "kohya" if "_" in stem.split(".")[0] and "." not in stem else "peft"
        shapes = pair(stem, ends=ends) | (clip() if text else {})
        for partial in (False, True):
            with pytest.raises(CheckpointError) as error:
                full_size(family).match(FILE, on_meta(shapes), {}, partial)
            told = str(error.value)
            assert told.startswith(f"x.safetensors is a LoRA for {name}"), stem
            assert f"none of its 1 layers of a U-Net or transformer (such as {stem})" in told
            assert "a LoRA works on its own family only" in told


def test_a_flux_lora_of_full_size() -> None:
    """As sd-scripts write it with its text encoder: 1,128 keys, of which 216 would fit."""
    shapes: Shapes = {}
    for i in range(19):
        for stream in ("img", "txt"):
            for name in ("attn_proj", "attn_qkv", "mlp_0", "mlp_2"):
                shapes |= pair(f"lora_unet_double_blocks_{i}_{stream}_{name}", 3072, 3072)
    for i in range(38):
        for name in ("linear1", "linear2", "modulation_lin")[: 2 + (i < 76)]:
            shapes |= pair(f"lora_unet_single_blocks_{i}_{name}", 3072, 3072)
    shapes |= clip()
    for family in ("sd1", "sdxl"):
        with pytest.raises(CheckpointError, match="is a LoRA for Flux: none of its 266 layers"):
            full_size(family).match(FILE, on_meta(shapes), {}, partial=True)


def test_a_part_that_does_not_fit_is_told() -> None:
    """Refused; with ``partial``, what fits is used, and the summary says what is left out."""
    ours = lora_layouts.kohya("sd1")
    more = pair("lora_te3_encoder_block_0_layer_0_SelfAttention_k")
    more |= pair("lora_unet_double_blocks_0_img_attn_qkv")
    more |= pair("lora_unet_down_blocks_9_resnets_0_conv1")
    more |= pair("lora_te2_text_model_encoder_layers_0_mlp_fc1")
    more |= {"lora_unet_mid_block_resnets_0_conv1.lora_down.weight": (4, 1280, 3, 3), "odd": (3,)}
    loras, tensors = full_size("sd1"), on_meta(ours | more)
    with pytest.raises(CheckpointError) as error:
        loras.match(FILE, tensors, {})
    told = str(error.value)
    assert told.startswith(f"x.safetensors: {len(ours)} of {len(ours) + 10} keys fit this model")
    assert "Stable Diffusion 1.x" in told
    assert told.endswith("Give --partial-lora (partial=True) to use what fits")
    lora = loras.match(FILE, tensors, {}, partial=True)
    assert {why: len(names) for why, names in lora.left_out.items()} == {
        "for the text encoder T5": 2,
        "for Flux": 2,
        "for layers that this model does not have": 2,
        "for another text encoder": 2,
        "incomplete": 1,
        "unknown": 1,
    }
    for why in lora.left_out:
        assert why in told
        assert why in lora.summary
    found = [name for factors in lora.updates.values() for name in factors.names.values()]
    left = [name for names in lora.left_out.values() for name in names]
    assert sorted(found + left) == sorted(tensors)  # every key is in one place
    assert lora.applied == len(found)


@pytest.mark.parametrize("family", ["sd1", "sd2", "sdxl"])
@pytest.mark.parametrize("kind", ["LoHa", "LoKr", "full difference", "GLoRA"])
def test_another_family_is_told_by_the_width_of_its_texts(family: str, kind: str) -> None:
    width = {"sd1": 1024, "sd2": 2048, "sdxl": 768}[family]
    stem = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn2_to_k"
    shapes: Shapes = {
        "LoHa": {
            **{f"{stem}.hada_w{i}_a": (1280, 4) for i in (1, 2)},
            **{f"{stem}.hada_w{i}_b": (4, width) for i in (1, 2)},
        },
        "LoKr": {f"{stem}.lokr_w1": (8, 16), f"{stem}.lokr_w2_a": (160, 4),
                 f"{stem}.lokr_w2_b": (4, width // 16)},
        "full difference": {f"{stem}.diff": (1280, width)},
        "GLoRA": {f"{stem}.a1.weight": (width, 4), f"{stem}.a2.weight": (4, width),
                  f"{stem}.b1.weight": (1280, 4), f"{stem}.b2.weight": (4, width)},
    }[kind]  # fmt: skip
    with pytest.raises(CheckpointError, match=rf"\(texts of width {width}\), but this model is"):
        full_size(family).match(FILE, on_meta(shapes), {})


Q = "down_blocks_1_attentions_0_transformer_blocks_0_attn1_to_q"
DOTTED = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q"
UNET = ("unet", DOTTED)
FC = "text_model.encoder.layers.3.mlp.fc1"
ONE, TWO = ("text_encoder", FC), ("text_encoder_2", FC)
SDXL = {
    f"lora_unet_{Q}": UNET,
    "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_q": UNET,
    f"lycoris_{Q}": UNET,
    f"unet.{DOTTED}": UNET,
    DOTTED: UNET,
    f"base_model.model.{DOTTED}": UNET,
    f"base_model.model.unet.{DOTTED}": UNET,
    "diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q": UNET,
    "model.diffusion_model.input_blocks.4.1.transformer_blocks.0.attn1.to_q": UNET,
    f"diffusion_model.{DOTTED}": UNET,
    f"lora_unet.{DOTTED}": UNET,
    f"unet.{DOTTED.replace('to_q', 'processor.to_q_lora')}": UNET,
    "lora_te1_text_model_encoder_layers_3_mlp_fc1": ONE,
    "lora_te1_encoder_layers_3_mlp_fc1": ONE,
    "lora_te_text_model_encoder_layers_3_mlp_fc1": ONE,
    f"text_encoder.{FC}": ONE,
    "text_encoder.encoder.layers.3.mlp.fc1": ONE,
    f"text_encoders.clip_l.transformer.{FC}": ONE,
    f"clip_l.transformer.{FC}": ONE,
    "lora_te2_text_model_encoder_layers_3_mlp_fc1": TWO,
    f"text_encoder_2.{FC}": TWO,
    f"text_encoders.clip_g.transformer.{FC}": TWO,
    f"base_model.model.text_encoder_2.{FC}": TWO,
    f"base_model.model.{FC}": TWO,  # by its shape
    "lycoris_text_model_encoder_layers_3_mlp_fc1": TWO,
}
ENDS = {
    "down and up": (".lora_down.weight", ".lora_up.weight"),
    "A and B": (".lora_A.weight", ".lora_B.weight"),
    "named": (".lora_A.default.weight", ".lora_B.default.weight"),
}


@pytest.mark.parametrize("ends", ENDS)
@pytest.mark.parametrize("stem", SDXL)
def test_prefixes_of_all_tools(stem: str, ends: str) -> None:
    loras = full_size("sdxl")
    shape = loras.layers[SDXL[stem]].weight.shape
    down, up = ENDS[ends] if "processor" not in stem else (".down.weight", ".up.weight")
    shapes = {stem + down: (4, shape[1]), stem + up: (shape[0], 4)}
    lora = loras.match(FILE, on_meta(shapes), {})
    assert list(lora.updates) == [SDXL[stem]]
    assert lora.applied == lora.total == 2


# The words in LoRA files


def words(loras: Loras, shapes: Shapes, metadata: dict[str, str], partial: bool = False) -> dict:
    stem = f"lora_unet_{Q}"
    width = loras.layers[UNET].weight.shape[1]
    lora = loras.match(
        Path("a.safetensors"), on_meta(shapes | pair(stem, width, width)), metadata, partial
    )
    assert lora.applied + sum(map(len, lora.left_out.values())) == lora.total
    assert all(word in lora.summary for word in lora.words)
    return {
        word: {part: tuple(v.shape) for part, v in vectors.items()}
        for word, vectors in lora.words.items()
    }


def test_words_of_onetrainer() -> None:
    loras = full_size("sdxl")
    shapes: Shapes = {
        "bundle_emb.zxcat.clip_l": (4, 768), "bundle_emb.zxcat.clip_g": (4, 1280),
        "bundle_emb.a.b.c.clip_l": (768,),
    }  # fmt: skip
    assert words(loras, shapes, {}) == {
        "zxcat": {"text_encoder": (4, 768), "text_encoder_2": (4, 1280)},
        "a.b.c": {"text_encoder": (1, 768)},
    }
    for key, shape, why in (
        ("clip_l_out", (4, 768), "1 words' vectors for the text encoder's output, which are not"),
        ("t5", (4, 4096), "1 words for text encoders that this model does not have"),
        ("clip_g", (4, 768), "1 words for text encoders that this model does not have"),
    ):
        with pytest.raises(CheckpointError, match=why):
            words(loras, {f"bundle_emb.w.{key}": shape}, {})
        assert words(loras, {f"bundle_emb.w.{key}": shape}, {}, partial=True) == {}
    with pytest.raises(CheckpointError, match=r"bundle_emb\.w\.clip_l has shape \(1, 2, 768\)"):
        words(loras, {"bundle_emb.w.clip_l": (1, 2, 768)}, {})


@pytest.mark.parametrize(("family", "width"), [("sd1", 768), ("sd2", 1024)])
def test_words_of_one_text_encoder(family: str, width: int) -> None:
    """OneTrainer says "clip_l" for SD 2.x, too; A1111 and cloneofsimo name no encoder."""
    loras = full_size(family)
    found = {"text_encoder": (2, width)}
    assert words(loras, {"bundle_emb.w.clip_l": (2, width)}, {}) == {"w": found}
    assert words(loras, {"bundle_emb.w.string_to_param.*": (2, width)}, {}) == {"w": found}
    assert words(loras, {"<s1>": (2, width)}, {"<s1>": "<embed>"}) == {"<s1>": found}
    with pytest.raises(CheckpointError, match="1 unknown"):
        words(loras, {"<s1>": (2, width)}, {})


def test_words_alone_are_enough() -> None:
    lora = full_size("sd1").match(FILE, {"bundle_emb.w.clip_l": torch.empty(2, 768)}, {})
    assert lora.summary == "x.safetensors: 1 of 1 keys applied; its words: w"
