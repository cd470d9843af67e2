"""Pictures of Python are drawn again by ``ldm-generate --from``, to the pixel."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm import Pipeline, hires_fix, read_info
from ldm.cli.common import USAGE
from ldm.cli.generate import main
from tests.helpers.pictures import generator

Replay = Callable[..., np.ndarray]
SHORT: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 3.0, "height": 40, "width": 64}


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


@pytest.fixture
def replay(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Replay:
    """Draw a file again → pixels."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *argv: str) -> np.ndarray:
        again = f"again.{name.split('.')[1]}"
        assert main(["--from", name, "--model", str(folder), "-o", again, "--force", *argv]) == 0
        return np.asarray(Image.open(again))

    return run


CALLS: dict[str, dict[str, Any]] = {
    "plain": {"seed": 7},
    "picked seed": {},
    "all": {
        "seed": 3, "negative_prompt": "grey", "sampler": "ddim", "eta": 0.5, "clip_skip": 1,
        "guidance_rescale": 0.5, "guidance_interval": (0.2, 5.0), "tiling": True,
    },
    "variation": {"seed": 0, "variation_seed": 5, "variation_strength": 0.3},
    "generator": {"generator": generator(4)},
    "caching": {"seed": 1, "deep_cache": 2, "num_inference_steps": 4},
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
def test_the_same_picture(pipe: Pipeline, replay: Replay, call: str) -> None:
    output = pipe("a (red:1.2) car", **{**SHORT, **CALLS[call]})
    output.images[0].save("a.png")
    assert output.images[0].size == (64, 40)
    assert (replay("a.png") == np.asarray(output.images[0])).all()


@pytest.mark.parametrize("ending", ["jpg", "webp"])
def test_other_formats(pipe: Pipeline, replay: Replay, ending: str) -> None:
    pipe("a red car", seed=2, **SHORT).images[0].save(f"a.{ending}")
    assert (replay(f"a.{ending}") == np.asarray(Image.open(f"a.{ending}"))).all()


@pytest.mark.parametrize(
    "batch",
    [
        {"prompt": ["a cat", "a dog"], "seed": 5, "num_images_per_prompt": 2},
        {"prompt": "a cat", "seed": [9, 3, 0]},
        {"prompt": "a cat", "seed": 0, "variation_seed": 1, "variation_strength": 0.4,
         "num_images_per_prompt": 2},
    ],
)  # fmt: skip
def test_pictures_of_a_batch(pipe: Pipeline, replay: Replay, batch: dict[str, Any]) -> None:
    output = pipe(**batch, **SHORT)
    for path, image in zip(output.save("out"), output.images, strict=True):
        assert (replay(str(path)) == np.asarray(image)).all()
    seeds = batch["seed"]
    assert output.seeds[0] == (seeds[0] if isinstance(seeds, list) else seeds)


def test_the_optimized_way_is_kept(folder: Path, replay: Replay) -> None:
    """They round differently; the command's way needs no word."""
    own = Pipeline.from_pretrained(folder, device="cpu")
    for on in (False, True):
        image = own.optimize(on)("a cat", seed=1, **SHORT).images[0]
        assert read_info(image).optimize is (None if on else False)
        image.save("a.png")
        assert (replay("a.png") == np.asarray(image)).all()


def test_images_must_be_given_again(
    pipe: Pipeline, replay: Replay, picture: Image.Image, mask: Image.Image, capsys: Any
) -> None:
    picture.save("start.png")
    mask.save("mask.png")
    options = SHORT | {"seed": 1, "strength": 0.7, "mask_blur": 2.0}
    array = np.asarray(picture)
    drawn = pipe("a cat", image=array, mask_image=mask, **options).images[0]
    drawn.save("a.png")
    again = replay("a.png", "--image", "start.png", "--mask", "mask.png")
    assert (again == np.asarray(drawn)).all()
    assert main(["--from", "a.png"]) == USAGE
    capsys.readouterr()
    mask.save("other.png")
    replay("a.png", "--image", "other.png", "--mask", "mask.png")
    assert "was drawn from another --image than other.png" in capsys.readouterr().err


def test_two_passes(pipe: Pipeline, replay: Replay) -> None:
    sizes = SHORT | {"height": 24, "width": 40}
    *_, last = hires_fix(pipe, "a cat", seed=[4, 2], hires_scale=1.5, hires_strength=0.6, **sizes)
    image = last.output.images[1]
    assert image.size == (64, 40)
    image.save("a.png")
    assert (replay("a.png") == np.asarray(image)).all()
    assert read_info(image).arguments["width"] == 40


def test_loras_and_words(folder: Path, replay: Replay, tmp_path: Path) -> None:
    own = Pipeline.from_pretrained(folder, device="cpu")
    layer = "lora_unet_up_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    width = own.unet.up_blocks[0].attentions[0].transformer_blocks[0].attn1.to_q.weight.shape[0]
    rng = generator(0)
    save_file(
        {
            f"{layer}.lora_down.weight": torch.randn(2, width, generator=rng),
            f"{layer}.lora_up.weight": torch.randn(width, 2, generator=rng),
        },
        "style.safetensors",
    )
    save_file({"emb_params": torch.randn(2, 32, generator=rng)}, "sks.safetensors")
    plain = np.asarray(own("a cat", seed=1, **SHORT).images[0])
    own.load_lora_weights("style.safetensors", scale={"unet": 0.6, "text_encoder": 0.5})
    assert own.load_textual_inversion("sks.safetensors") == "sks"
    image = own("a sks cat", seed=1, **SHORT).images[0]
    assert np.abs(np.asarray(image).astype(int) - plain).max() > 8
    assert read_info(image).arguments["prompt"] == "a sks cat <lora:style:0.5:0.6>"
    image.save("a.png")
    assert (replay("a.png", "--embedding", "sks.safetensors") == np.asarray(image)).all()


MISSING: dict[str, tuple[dict[str, Any], str]] = {
    "generator": ({"generator": generator(1), "num_images_per_prompt": 2}, "a --seed"),
    "latents": ({"latents": torch.randn(1, 4, 5, 8, generator=generator(1))}, "a --seed"),
    "prompt_embeds": (
        {"prompt": None, "prompt_embeds": torch.randn(1, 77, 32, generator=generator(1))},
        "a prompt",
    ),
    "negative_prompt_embeds": (
        {"negative_prompt_embeds": torch.randn(1, 77, 32, generator=generator(1))},
        "a --negative-prompt",
    ),
    "steps_before": ({"steps_before": 1}, ""),
}


@pytest.mark.parametrize("name", MISSING)
def test_what_no_file_holds(pipe: Pipeline, replay: Replay, name: str, capsys: Any) -> None:
    arguments, option = MISSING[name]
    image = pipe(**{"prompt": "a cat", "seed": None, **SHORT, **arguments}).images[-1]
    assert read_info(image).missing == (name,)
    image.save("a.png")
    assert f"Not in the file: {name}" in image.info["parameters"]
    assert main(["--from", "a.png"]) == USAGE
    told = capsys.readouterr().err
    assert f"error: a.png was drawn in Python with {name}, " in told
    if option:
        assert f"or give {option} for another picture" in told
        words = ["a dog"] if option == "a prompt" else [option.removeprefix("a "), "0"]
        replay("a.png", *words)


def test_a_generator_that_has_drawn(pipe: Pipeline) -> None:
    used = generator(4)
    torch.randn(1, generator=used)
    output = pipe("a cat", generator=[used, generator(5)], num_images_per_prompt=2, **SHORT)
    assert output.seeds == [None, 5]
    assert [read_info(image).missing for image in output.images] == [("generator",), ()]


def test_zeros_for_no_negative_prompt(models: Any) -> None:
    """SDXL's; the text "" is another thing."""
    ours, _ = models("sdxl")
    assert ours.force_zeros_for_empty_prompt
    for negative in (None, ""):
        output = ours("a cat", negative_prompt=negative, seed=1, **SHORT)
        assert read_info(output.images[0]).arguments["negative_prompt"] == negative


def test_a_model_put_together_by_hand(pipe: Pipeline, replay: Replay, capsys: Any) -> None:
    made = Pipeline(**pipe.components)
    image = made("a cat", seed=1, **SHORT).images[0]
    assert read_info(image).model is None
    image.save("a.png")
    assert (replay("a.png") == np.asarray(image)).all()
    assert "names no model" in capsys.readouterr().err
