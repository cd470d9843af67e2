"""Words in LoRA files: they can be used in prompts while the LoRA is in use, and no longer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ldm.checkpoints.describe import describe_header
from ldm.checkpoints.header import read_header
from ldm.errors import ArgumentError, CheckpointError
from tests.helpers.pictures import draw

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 40, "width": 64}
PROMPT = "a zxcat in a box"
LAYER = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"


def vectors(count: int, width: int, seed: int = 0) -> Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def lora(path: Path, words: dict[str, Tensor], value: float = 1.0) -> Path:
    tensors = {
        f"{LAYER}.lora_down.weight": torch.full((1, 64), value),
        f"{LAYER}.lora_up.weight": torch.ones(64, 1) * 0.1,
    }
    save_file(tensors | words, path)
    return path


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_same_picture_as_with_a_textual_inversion(models: Any, tmp_path: Path, family: str) -> None:
    ours, _ = models(family)
    both = {"clip_l": vectors(2, 32)} | ({"clip_g": vectors(2, 48, 1)} if family == "sdxl" else {})
    own = both if family == "sdxl" else {"zxcat": both["clip_l"]}
    save_file(own, tmp_path / "zxcat.safetensors")
    plain = draw(ours, PROMPT, seed=3, **ARGUMENTS)
    ours.load_lora_weights(lora(tmp_path / "plain.safetensors", {}))
    ours.load_textual_inversion(tmp_path / "zxcat.safetensors")
    want = draw(ours, PROMPT, seed=3, **ARGUMENTS)
    ours.unload_lora_weights()
    ours.unload_textual_inversion()
    file = lora(
        tmp_path / "a.safetensors", {f"bundle_emb.zxcat.{key}": v for key, v in both.items()}
    )
    found = ours.load_lora_weights(file)
    try:
        assert found.summary.endswith("keys applied; its words: zxcat")
        assert torch.equal(draw(ours, PROMPT, seed=3, **ARGUMENTS)[0], want[0])
        assert (want[0] - plain[0]).abs().max() > 0.05
        ours.set_adapters("a", 0.0)  # not in use
        assert ours.text_models[0].tokenizer is ours.tokenizer
        ours.set_adapters("a", {"unet": 0.0, "text_encoder": 0.5})
        assert 49408 in ours.text_models[0].tokenizer.encode("zxcat")
    finally:
        ours.unload_lora_weights()
    assert torch.equal(draw(ours, PROMPT, seed=3, **ARGUMENTS)[0], plain[0])
    rows = dict(describe_header(read_header(file), file))
    assert rows["words"] == "zxcat"


def test_two_with_one_word(models: Any, tmp_path: Path) -> None:
    """As of two epochs: one at a time, unless they have the same vectors."""
    ours, _ = models("sd")
    for i, name in enumerate("abb"):
        words = {"bundle_emb.zxcat.clip_l": vectors(2, 32, i // 2)}
        lora(tmp_path / f"{name}{i}.safetensors", words)
    try:
        ours.load_lora_weights(tmp_path / "a0.safetensors")
        ours.load_lora_weights(tmp_path / "b1.safetensors")
        with pytest.raises(ArgumentError, match="'b1' and 'b2' both have a word 'zxcat'; use one"):
            ours.load_lora_weights(tmp_path / "b2.safetensors")
        assert list(ours.loras.loaded) == ["a0", "b1"]
        ours.load_lora_weights(tmp_path / "b2.safetensors", scale=0.0)
        ours.set_adapters("b2")
        (layer,) = [m.encoder.text_model.embeddings.extra for m in ours.text_models]
        assert layer.equal(vectors(2, 32, 1))
        with pytest.raises(ArgumentError, match="both have a word"):
            ours.set_adapters(["a0", "b2"])
        # A word that is loaded by itself keeps its vectors.
        save_file({"zxcat": vectors(1, 32, 5)}, tmp_path / "zxcat.safetensors")
        ours.load_textual_inversion(tmp_path / "zxcat.safetensors")
        (layer,) = [m.encoder.text_model.embeddings.extra for m in ours.text_models]
        assert layer.equal(vectors(1, 32, 5))
    finally:
        ours.unload_textual_inversion()
        ours.unload_lora_weights()
    assert ours.text_models[0].tokenizer is ours.tokenizer


def test_vectors_that_are_none(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    for bad in (torch.full((2, 32), float("nan")), torch.ones(2, 32, dtype=torch.int64)):
        lora(tmp_path / "a.safetensors", {"bundle_emb.zxcat.clip_l": bad})
        with pytest.raises(CheckpointError, match=r"zxcat (holds NaN|is int64)"):
            ours.load_lora_weights(tmp_path / "a.safetensors")
        assert not ours.loras.loaded


def test_scales_of_parts(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sdxl")
    stem = "text_model_encoder_layers_0_mlp_fc1"
    tensors = {}
    for name, part in (("te1", "text_encoder"), ("te2", "text_encoder_2")):
        out, inner = (
            getattr(ours, part).get_submodule("text_model.encoder.layers.0.mlp.fc1").weight.shape
        )
        tensors |= {f"lora_{name}_{stem}.lora_down.weight": torch.ones(1, inner)}
        tensors |= {f"lora_{name}_{stem}.lora_up.weight": torch.ones(out, 1)}
    tensors |= {f"{LAYER}.lora_down.weight": torch.ones(1, 64)}
    tensors |= {f"{LAYER}.lora_up.weight": torch.ones(64, 1)}
    save_file(tensors, tmp_path / "x.safetensors")

    def changes() -> dict[str, float]:
        return {
            module[0]: round(float((ours.loras.layers[module].weight - base).mean()), 4)
            for module, base in ours.loras.base.items()
        }

    try:
        ours.load_lora_weights(
            tmp_path / "x.safetensors", scale={"unet": 0.5, "text_encoder": 0.25}
        )
        assert changes() == {"unet": 0.5, "text_encoder": 0.25, "text_encoder_2": 0.25}
        ours.set_adapters("x", {"text_encoder_2": 2.0})  # the others are 1, as in diffusers
        assert changes() == {"unet": 1.0, "text_encoder": 1.0, "text_encoder_2": 2.0}
        ours.set_adapters(["x"], [{"unet": 0.0}])
        assert changes() == {"text_encoder": 1.0, "text_encoder_2": 1.0}
        ours.set_adapters("x", 0.5)
        assert set(changes().values()) == {0.5}
        with pytest.raises(ArgumentError, match="scale has 'vae'; known are unet, text_encoder"):
            ours.set_adapters("x", {"vae": 1.0})
        with pytest.raises(ArgumentError, match="scale is nan"):
            ours.set_adapters("x", {"unet": float("nan")})
    finally:
        ours.unload_lora_weights()
    assert not ours.loras.base
