"""Textual inversion: four forms of file, diffusers' pictures, gone when unloaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ldm.errors import ArgumentError, CheckpointError
from tests.helpers.families import for_task
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator

ARGUMENTS = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 40, "width": 64}
PROMPT = "a photo of <toy> in a <toy>-shaped box"


def vectors(count: int, width: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(count, width, generator=torch.Generator().manual_seed(seed))


def a1111(path: Path) -> Path:
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors(3, 32)}}
    content |= {"name": "<toy>", "step": 100, "sd_checkpoint": None, "sd_checkpoint_name": None}
    torch.save(content, path / "toy.pt")
    return path / "toy.pt"


def a1111_safetensors(path: Path) -> Path:
    save_file({"emb_params": vectors(3, 32)}, path / "<toy>.safetensors")
    return path / "<toy>.safetensors"


def diffusers_form(path: Path) -> Path:
    save_file({"<toy>": vectors(3, 32)}, path / "learned_embeds.safetensors")
    return path / "learned_embeds.safetensors"


def diffusers_bin(path: Path) -> Path:
    torch.save({"<toy>": vectors(3, 32)}, path / "learned_embeds.bin")
    return path / "learned_embeds.bin"


@pytest.mark.parity
@pytest.mark.parametrize("form", [a1111, a1111_safetensors, diffusers_form, diffusers_bin])
def test_same_picture_as_diffusers(models: Any, tmp_path: Path, form: Any) -> None:
    ours, theirs = models("sd")
    theirs = for_task(theirs, "text")
    plain = draw(ours, PROMPT, seed=3, **ARGUMENTS)
    assert ours.load_textual_inversion(form(tmp_path)) == "<toy>"
    theirs.load_textual_inversion(vectors(3, 32), token="<toy>")
    try:
        want = draw_theirs(theirs, PROMPT, generator=generator(3), **ARGUMENTS)
        got = draw(ours, PROMPT, seed=3, **ARGUMENTS)
        assert_same(got, want)
        assert (got[0] - plain[0]).abs().max() > 0.05
        with pytest.raises(ArgumentError, match="'<toy>' is loaded already"):
            ours.load_textual_inversion(form(tmp_path))
    finally:
        theirs.unload_textual_inversion()
        ours.unload_textual_inversion()
    assert torch.equal(draw(ours, PROMPT, seed=3, **ARGUMENTS)[0], plain[0])


@pytest.mark.parity
def test_of_sdxl(models: Any, tmp_path: Path) -> None:
    ours, theirs = models("sdxl")
    theirs = for_task(theirs, "text")
    file = tmp_path / "toy.safetensors"
    save_file({"clip_l": vectors(2, 32), "clip_g": vectors(2, 48, 1)}, file)
    assert ours.load_textual_inversion(file, token="<toy>") == "<toy>"
    try:
        for part, end in ((vectors(2, 32), ""), (vectors(2, 48, 1), "_2")):
            theirs.load_textual_inversion(
                part,
                token="<toy>",
                text_encoder=getattr(theirs, f"text_encoder{end}"),
                tokenizer=getattr(theirs, f"tokenizer{end}"),
            )
        want = draw_theirs(theirs, PROMPT, generator=generator(3), **ARGUMENTS)
        assert_same(draw(ours, PROMPT, seed=3, **ARGUMENTS), want)
    finally:
        ours.unload_textual_inversion()


def test_several_words_and_case(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    for i, name in enumerate(("one", "two")):
        save_file({"emb_params": vectors(i + 1, 32, i)}, tmp_path / f"zz{name}.safetensors")
        ours.load_textual_inversion(tmp_path / f"zz{name}.safetensors")
    try:
        tokenizer = ours.text_models[0].tokenizer
        base = len(ours.tokenizer.encode("a b"))
        ids = tokenizer.encode("a zztwo b ZZONE")
        assert ids == [*tokenizer.encode("a"), 49409, 49410, *tokenizer.encode("b"), 49408]
        assert len(ids) == base + 3
        assert 49408 not in tokenizer.encode("zzoneness")
        assert tokenizer.units("zztwo end")[0] == (49409, 49410)
    finally:
        ours.unload_textual_inversion()
    assert ours.text_models[0].tokenizer is ours.tokenizer


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"emb_params": torch.zeros(2, 40)}, "vectors of width 40, this model's text encoders 32"),
        ({"clip_l": torch.zeros(2, 32), "clip_g": torch.zeros(2, 48)}, "another family"),
        ({"a": torch.zeros(2, 32), "b": torch.zeros(2, 32), "c": torch.zeros(1)}, "no textual"),
        ({"a": torch.zeros(2, 2, 32)}, "no textual inversion"),
    ],
)
def test_files_that_do_not_fit(
    models: Any,
    tmp_path: Path,
    content: Any,
    message: str,
) -> None:
    ours, _ = models("sd")
    save_file(content, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=message):
        ours.load_textual_inversion(tmp_path / "x.safetensors")
    assert not ours.inversions.loaded
    with pytest.raises(CheckpointError, match="does not exist"):
        ours.load_textual_inversion(tmp_path / "y.safetensors")
