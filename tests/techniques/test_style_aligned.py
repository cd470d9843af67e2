"""Style-aligned batches: the authors' formulas in diffusers' pipelines, and what goes with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from ldm.errors import ArgumentError
from ldm.hires import hires_fix
from ldm.images.generation_info import read_generation_info
from tests.helpers.networks import difference
from tests.helpers.pictures import assert_same, draw, draw_theirs, generators
from tests.helpers.shared_attention import aligned

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SETTINGS: dict[str, Any] = {
    "num_inference_steps": 4, "guidance_scale": 3.0, "height": 40, "width": 64,
}  # fmt: skip
PROMPTS = ["a red car", "a house", "a small tree"]


def latents(pipe: Any, prompt: Any = PROMPTS, **arguments: Any) -> torch.Tensor:
    given = {"seed": 3, "output_type": "latent", "style_aligned": True} | SETTINGS | arguments
    return pipe(prompt, **given).images


@pytest.mark.parity
@pytest.mark.parametrize("guidance", [1.0, 3.0])
@pytest.mark.parametrize("family", ["sd", "sd2", "sdxl"])
def test_diffusers_with_the_authors_attention(models: Any, family: str, guidance: float) -> None:
    ours, theirs = models(family)
    texts = {"prompt": PROMPTS, "negative_prompt": ["blurry", "dark", "grey"]}
    settings = SETTINGS | {"guidance_scale": guidance}
    with aligned(theirs.unet, 2 if guidance > 1 else 1):
        want = draw_theirs(theirs, generator=generators(3, 3), **texts, **settings)
    assert_same(draw(ours, seed=3, style_aligned=True, **texts, **settings), want)


def test_the_model_is_bit_identical_afterwards(
    models: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    ours, _ = models("sd")
    before = latents(ours, style_aligned=False)
    shared = latents(ours)
    assert difference(shared[1:], before[1:]) > 0.1
    assert difference(shared[:1], before[:1]) < 1e-4  # the first reads itself twice
    with monkeypatch.context() as patch:
        patch.setattr(type(ours.unet.conv_out), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            latents(ours)
    assert torch.equal(latents(ours, style_aligned=False), before)
    assert torch.equal(latents(ours), shared)


def test_a_picture_depends_on_the_first_alone(models: Any) -> None:
    ours, _ = models("sd")
    three = latents(ours)
    two = latents(ours, [PROMPTS[0], PROMPTS[2]], seed=[3, 5])
    assert difference(two, three[[0, 2]]) < 1e-4
    other = latents(ours, ["a dog", *PROMPTS[1:]])
    assert difference(other[1:], three[1:]) > 0.1


def test_what_it_is_drawn_with(models: Any, picture: Any) -> None:
    ours, _ = models("sd")
    for prompts in (
        ["a red car AND a house", "a house AND a tree :0.5"],
        ["a [red:green:0.5] car", "a house"],
        ["a car " + "very " * 80, "a house " + "very " * 80],
    ):
        plain = latents(ours, prompts, style_aligned=False)
        assert difference(latents(ours, prompts)[1:], plain[1:]) > 0.05
    for more in ({"image": picture, "strength": 0.6}, {"tiling": True}, {"sampler": "heun"}):
        plain = latents(ours, style_aligned=False, **more)
        assert difference(latents(ours, **more)[1:], plain[1:]) > 0.01
    tiny = {"height": 8, "width": 8}  # a pixel at the coarsest level has no deviation
    assert latents(ours, **tiny).isfinite().all()


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_optimized_and_with_deep_cache(models: Any, family: str) -> None:
    ours, _ = models(family)
    want = latents(ours)
    longer = {"num_inference_steps": 6}
    cached, whole = latents(ours, deep_cache=2, **longer), latents(ours, **longer)
    assert difference(cached, whole) > 1e-3
    plain = latents(ours, deep_cache=2, style_aligned=False, **longer)
    assert difference(cached[1:], plain[1:]) > 0.05
    try:
        ours.optimize()
        assert difference(latents(ours), want) < 1e-3
        ours.optimize(int8=True)
        assert difference(latents(ours), want) < 0.3 * float(want.abs().max())
    finally:
        ours.optimize(False)
    assert torch.equal(latents(ours), want)


def test_two_passes(models: Any) -> None:
    ours, _ = models("sd")
    settings = SETTINGS | {"hires_scale": 1.5, "seed": 3}
    *_, shared = hires_fix(ours, PROMPTS, style_aligned=True, **settings)
    *_, plain = hires_fix(ours, PROMPTS, **settings)
    assert difference(shared.latents[1:], plain.latents[1:]) > 0.05


def test_files_say_what_else_was_drawn(models: Any, tmp_path: Path) -> None:
    ours, _ = models("sd")
    found = ours(PROMPTS, seed=3, style_aligned=True, **SETTINGS).images
    found[1].save(tmp_path / "b.png")
    info = read_generation_info(tmp_path / "b.png")
    assert info.batch == (3, 1) and info.batch_prompts == tuple(PROMPTS)
    assert info.arguments["style_aligned"] is True and not info.missing
    found = ours(PROMPTS, seed=[3, 9, 1], style_aligned=True, **SETTINGS).images
    assert read_generation_info(found[1]).missing == (
        "seeds that do not count up and style_aligned",
    )
    negatives = ["a", "b", "c"]
    found = ours(PROMPTS, seed=3, negative_prompt=negatives, style_aligned=True, **SETTINGS).images
    assert read_generation_info(found[1]).missing == ("several negative prompts and style_aligned",)
    assert read_generation_info(ours("a", seed=3, **SETTINGS).images[0]).batch_prompts == ()


def test_wrong_input(models: Any) -> None:
    ours, _ = models("sd")
    for prompts in (["a car " + "very " * 80, "a house"], ["a [car:" + "b " * 80 + ":0.5]", "c"]):
        with pytest.raises(ArgumentError, match="different lengths in chunks of 75 tokens"):
            ours.stream(prompts, style_aligned=True)
    with pytest.raises(ArgumentError, match="style_aligned is 'yes'; it must be"):
        ours.stream(PROMPTS, style_aligned="yes")
