"""LoRA: diffusers' pictures with the same file, in every naming; on and off to the bit."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.adapters.lora import difference
from ldm.checkpoints.lora_names import Factors
from ldm.errors import ArgumentError
from ldm.loading.single_file import names_of
from ldm.pipeline import Pipeline
from tests.helpers.families import for_task
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator

pytest.importorskip("peft")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::UserWarning:peft"),
]

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 40, "width": 64}
ATTENTION = r"attn\d\.to_(q|k|v|out\.0)$|ff\.net\.(0\.proj|2)$|proj_(in|out)$"
CONVOLUTIONS = r"resnets\.0\.conv\d$|samplers\.0\.conv$"
TEXT = r"(q|k|v|out)_proj$|mlp\.fc\d$"

Pair = tuple[Tensor, Tensor]  # down, up


def pairs(pipe: Pipeline, part: str, pattern: str, rank: int = 3) -> dict[str, Pair]:
    """Random factors for the layers of a part whose names match."""
    rng = torch.Generator().manual_seed(len(part))
    made = {}
    for path, layer in getattr(pipe, part).named_modules():
        if not isinstance(layer, nn.Linear | nn.Conv2d) or not re.search(pattern, path):
            continue
        weight = layer.weight
        down = torch.randn(rank, *weight.shape[1:], generator=rng) * weight[0].numel() ** -0.5
        up = torch.randn(len(weight), rank, *(1,) * (weight.ndim - 2), generator=rng) * 0.4
        made[path] = down, up
    assert made
    return made


def kohya(pipe: Pipeline, prefixes: dict[str, str], original: bool = False) -> dict[str, Tensor]:
    """A file as kohya's sd-scripts write it."""
    tensors = {}
    rename = names_of(pipe.unet.config)
    for part, prefix in prefixes.items():
        pattern = f"{ATTENTION}|{CONVOLUTIONS}" if part == "unet" else TEXT
        for path, (down, up) in pairs(pipe, part, pattern).items():
            if part == "unet" and original:
                path = rename(f"{path}.weight").name.removesuffix(".weight")
            name = prefix + path.replace(".", "_")
            tensors[f"{name}.lora_down.weight"] = down
            tensors[f"{name}.lora_up.weight"] = up
            # One for all: diffusers 0.42 loses those that differ.
            tensors[f"{name}.alpha"] = torch.tensor(2.0)
    return tensors


def peft_names(pipe: Pipeline, parts: tuple[str, ...], ends: tuple[str, str]) -> dict[str, Tensor]:
    tensors = {}
    for part in parts:
        pattern = ATTENTION if part == "unet" else TEXT
        for path, values in pairs(pipe, part, pattern).items():
            if part != "unet":
                path = path.removeprefix("text_model.")
                path = f"text_model.{path}"
            for end, value in zip(ends, values, strict=True):
                tensors[f"{part}.{path}.{end}.weight"] = value
    return tensors


FORMS = {
    "kohya": lambda pipe: kohya(pipe, {"unet": "lora_unet_", "text_encoder": "lora_te_"}),
    "peft": lambda pipe: peft_names(pipe, ("unet", "text_encoder"), ("lora_A", "lora_B")),
    "diffusers": lambda pipe: peft_names(pipe, ("unet",), ("lora.down", "lora.up")),
}
XL_FORMS = {
    "kohya": lambda pipe: kohya(
        pipe,
        {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"},
        original=True,
    ),
    "peft": lambda pipe: peft_names(
        pipe, ("unet", "text_encoder", "text_encoder_2"), ("lora_A", "lora_B")
    ),
}
CASES = [("sd", form) for form in FORMS] + [("sd2", "kohya")]
CASES += [("sdxl", form) for form in XL_FORMS]


def values(pipe: Pipeline) -> dict[str, Tensor]:
    parts = ("unet", "text_encoder", "text_encoder_2")
    modules = {name: getattr(pipe, name) for name in parts if getattr(pipe, name) is not None}
    return {
        f"{name}.{key}": value
        for name, module in modules.items()
        for key, value in module.state_dict().items()
    }


@pytest.mark.parity
@pytest.mark.parametrize(("family", "form"), CASES)
def test_same_picture_as_diffusers_and_off_again(
    models: Any,
    tmp_path: Path,
    family: str,
    form: str,
) -> None:
    ours, theirs = models(family)
    before = values(ours)
    plain = draw(ours, seed=3, **ARGUMENTS)
    file = tmp_path / "pytorch_lora_weights.safetensors"
    tensors = (XL_FORMS if family == "sdxl" else FORMS)[form](ours)
    save_file(tensors, file)
    theirs = for_task(theirs, "text")
    theirs.load_lora_weights(tmp_path, weight_name=file.name, adapter_name="a")
    try:
        for scale in (1.0, 0.6):
            theirs.set_adapters("a", scale)
            want = draw_theirs(theirs, generator=generator(3), **ARGUMENTS)
            lora = ours.load_lora_weights(file, scale=scale)
            assert lora.applied == lora.total == len(tensors)
            got = draw(ours, seed=3, **ARGUMENTS)
            assert (got[0] - plain[0]).abs().max() > 0.05
            assert_same(got, want)
            ours.unload_lora_weights()
    finally:
        theirs.unload_lora_weights()
        ours.unload_lora_weights()
    after = values(ours)
    assert all(after[key].data_ptr() == value.data_ptr() for key, value in before.items())


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("alpha", [None, torch.tensor(3.0), torch.tensor([3.0])])
def test_alpha_over_rank_scales_the_product(alpha: Tensor | None) -> None:
    """A missing α stands for the rank."""
    down, up = random(2, 5), random(4, 2, seed=1)
    found = difference(torch.zeros(4, 5), Factors(down=down, up=up, alpha=alpha))
    want = (1.0 if alpha is None else 1.5) * (up @ down)
    assert (found - want).abs().max() < 1e-6


def test_tucker_form_is_three_convolutions() -> None:
    down, mid, up = random(3, 5, 1, 1), random(2, 3, 3, 3, seed=1), random(4, 2, 1, 1, seed=2)
    found = difference(torch.zeros(4, 5, 3, 3), Factors(down=down, mid=mid, up=up))
    x = random(1, 5, 6, 6, seed=3)
    conv = nn.functional.conv2d
    want = conv(conv(conv(x, down), mid, padding=1), up)
    assert (conv(x, found, padding=1) - want).abs().max() < 1e-4


def test_several_add_up_and_scales_change_exactly(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    layer = ours.unet.get_submodule("mid_block.attentions.0.transformer_blocks.0.attn1.to_q")
    base = layer.weight
    name = "lora_unet_mid_block_attentions_0_transformer_blocks_0_attn1_to_q"
    deltas = []
    for i in range(2):
        down, up = random(2, 64, seed=i), random(64, 2, seed=9 + i)
        deltas.append(up @ down)
        save_file(
            {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up},
            tmp_path / f"{i}.safetensors",
        )
        ours.load_lora_weights(tmp_path / f"{i}.safetensors")
    try:
        assert (layer.weight - base - deltas[0] - deltas[1]).abs().max() < 1e-4
        ours.set_adapters(["0", "1"], [0.5, -2.0])
        assert (layer.weight - base - 0.5 * deltas[0] + 2 * deltas[1]).abs().max() < 1e-4
        ours.set_adapters("1")
        assert (layer.weight - base - deltas[1]).abs().max() < 1e-4
        with pytest.raises(ArgumentError, match="no LoRA named 'x' is loaded; there are: 0, 1"):
            ours.set_adapters("x")
        with pytest.raises(ArgumentError, match="a LoRA named '0' is loaded already"):
            ours.load_lora_weights(tmp_path / "0.safetensors")
    finally:
        ours.unload_lora_weights()
    assert layer.weight is base


def test_the_count_tells_what_found_no_place(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    tensors = peft_names(ours, ("unet",), ("lora_A", "lora_B"))
    tensors |= {f"unet.nowhere.lora_{end}.weight": torch.zeros(1, 1) for end in "AB"}
    save_file(tensors | {"odd": torch.zeros(1)}, tmp_path / "x.safetensors")
    lora = ours.load_lora_weights(tmp_path / "x.safetensors")
    ours.unload_lora_weights()
    count = len(tensors) - 2
    assert lora.summary == f"x.safetensors: {count} of {count + 3} keys applied"
