"""Pipelines of pixels against diffusers' DDPMPipeline and DDIMPipeline, and loops of one's own."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints.describe import describe
from ldm.errors import ArgumentError, CheckpointError
from ldm.images import to_tensor
from ldm.pipeline import Pipeline
from ldm.samplers import SAMPLERS
from ldm.scheduler import DDPMScheduler
from ldm.unet import UNet
from tests.helpers.networks import difference, randomize
from tests.helpers.pictures import generator, generators, pixels, quiet

diffusers = pytest.importorskip("diffusers")

SIDE = 16
LEARNED = {"out_channels": 6}


def unet(**changes: Any) -> Any:
    settings: dict[str, Any] = {
        "sample_size": SIDE,
        "block_out_channels": (16, 32),
        "layers_per_block": 1,
        "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
        "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
        "attention_head_dim": 8,
        "norm_num_groups": 8,
    }
    return randomize(diffusers.UNet2DModel(**(settings | changes)), 3)


def ddpm(**changes: Any) -> Any:
    return diffusers.DDPMScheduler(**changes)


# name → diffusers' pipeline
PIPELINES: dict[str, Callable[[], Any]] = {
    "ddpm": lambda: diffusers.DDPMPipeline(unet(), ddpm()),
    "grey": lambda: diffusers.DDPMPipeline(unet(in_channels=1, out_channels=1), ddpm()),
    "large": lambda: diffusers.DDPMPipeline(
        unet(downsample_padding=0), ddpm(variance_type="fixed_large", clip_sample_range=0.7)
    ),
    "short v": lambda: diffusers.DDPMPipeline(
        unet(),
        ddpm(num_train_timesteps=300, prediction_type="v_prediction", clip_sample=False),
    ),
    "learned": lambda: diffusers.DDPMPipeline(
        unet(**LEARNED), ddpm(variance_type="learned_range", beta_schedule="squaredcos_cap_v2")
    ),
    "ddim": lambda: diffusers.DDIMPipeline(
        unet(), diffusers.DDIMScheduler(beta_schedule="squaredcos_cap_v2")
    ),
}
Both = tuple[Pipeline, Any, Path]


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Both]:
    """(ours, diffusers', their folder)."""
    made: dict[str, Both] = {}

    def get(name: str) -> Both:
        if name not in made:
            folder = tmp_path_factory.mktemp("pixels")
            theirs = quiet(PIPELINES[name]())
            theirs.save_pretrained(folder)
            made[name] = Pipeline.from_pretrained(folder, device="cpu"), theirs, folder
        return made[name]

    return get


def pt(pipe: Pipeline, *prompt: str, **arguments: Any) -> Tensor:
    return pipe(*prompt, output_type="pt", **arguments).images


@pytest.mark.parity
@pytest.mark.parametrize("name", PIPELINES)
def test_pictures_are_diffusers(both: Callable[[str], Both], name: str) -> None:
    ours, theirs, _ = both(name)
    for n in (1, 10):
        want = theirs(generator=generator(3), num_inference_steps=n, output_type="pt").images
        assert difference(pt(ours, seed=3, num_inference_steps=n), want) <= 1e-4
    want = theirs(generator=generator(3), num_inference_steps=10).images
    got = ours(seed=3, num_inference_steps=10).images
    assert got[0].mode == want[0].mode == ("L" if name == "grey" else "RGB")
    assert pixels(want).std() > 20
    assert difference(pixels(got), pixels(want)) <= 1


@pytest.mark.parity
@pytest.mark.parametrize("name", ["ddpm", "ddim", "learned"])
def test_batches(both: Callable[[str], Both], name: str) -> None:
    ours, theirs, _ = both(name)
    steps = {"num_inference_steps": 4, "output_type": "pt"}
    want = theirs(batch_size=3, generator=generators(5, 3), **steps).images
    got = pt(ours, seed=5, num_images_per_prompt=3, num_inference_steps=4)
    assert difference(got, want) <= 1e-4
    want = theirs(batch_size=2, generator=generator(5), **steps).images
    got = pt(ours, ["", ""], generator=generator(5), num_inference_steps=4)
    assert difference(got, want) <= 1e-4


@pytest.mark.parity
def test_eta(both: Callable[[str], Both]) -> None:
    ours, theirs, _ = both("ddim")
    arguments = {"eta": 0.6, "num_inference_steps": 5}
    want = theirs(generator=generator(3), output_type="pt", **arguments).images
    assert difference(pt(ours, seed=3, **arguments), want) <= 1e-4


def loop(theirs: Any, x: Tensor, n: int, k: int, noise: torch.Generator, **told: Any) -> Tensor:
    """The last steps of a run of diffusers' scheduler from its k-th on."""
    theirs.scheduler.set_timesteps(n)
    for t in theirs.scheduler.timesteps[k:]:
        with torch.no_grad():
            said = theirs.unet(x, t, **told).sample
        x = theirs.scheduler.step(said, t, x, generator=noise).prev_sample
    return x


def test_other_sizes(both: Callable[[str], Both]) -> None:
    ours, theirs, _ = both("ddpm")
    noise = generator(3)
    x = torch.randn((1, 3, 10, 22), generator=noise)
    want = loop(theirs, x, 4, 0, noise).clamp(-1, 1) / 2 + 0.5
    arguments = {"height": 10, "width": 22, "num_inference_steps": 4}
    assert difference(pt(ours, seed=3, **arguments), want) <= 1e-4
    assert ours(height=13, width=19, num_inference_steps=2).images[0].size == (19, 13)
    with pytest.raises(ArgumentError, match="height is 0; it must be a positive whole number"):
        ours(height=0)


@pytest.mark.parity
@pytest.mark.parametrize("name", ["ddpm", "grey"])
def test_image_to_image(both: Callable[[str], Both], picture: Image.Image, name: str) -> None:
    """Pixels are noised as they are: no noise is drawn for a VAE."""
    ours, theirs, _ = both(name)
    small = picture.resize((20, 14), Image.Resampling.LANCZOS)
    x0 = to_tensor(small.convert("L").convert("RGB") if name == "grey" else small)
    x0 = x0[:, : theirs.unet.config.in_channels]
    noise = generator(3)
    eps = torch.randn(x0.shape, generator=noise)
    theirs.scheduler.set_timesteps(10)
    x = theirs.scheduler.add_noise(x0, eps, theirs.scheduler.timesteps[4:5])
    want = loop(theirs, x, 10, 4, noise).clamp(-1, 1) / 2 + 0.5
    got = pt(ours, image=small, strength=0.6, seed=3, num_inference_steps=10)
    assert difference(got, want) <= 1e-4
    kept = pt(ours, image=small, strength=0.0, seed=3)
    assert difference(kept, x0 / 2 + 0.5) <= 1e-6


@pytest.mark.parity
def test_inpainting(both: Callable[[str], Both], picture: Image.Image) -> None:
    ours, theirs, _ = both("ddim")
    picture = picture.resize((16, 16))
    hole = Image.new("L", (16, 16))
    hole.paste(255, (3, 5, 12, 13))
    x0, mask = to_tensor(picture), torch.from_numpy(np.asarray(hole) / 255).float()
    eps = torch.randn(x0.shape, generator=generator(3))
    x, scheduler = eps, theirs.scheduler
    scheduler.set_timesteps(5)
    for t, after in zip(scheduler.timesteps, [*scheduler.timesteps[1:], None], strict=True):
        with torch.no_grad():
            x = scheduler.step(theirs.unet(x, t).sample, t, x).prev_sample
        known = x0 if after is None else scheduler.add_noise(x0, eps, after[None])
        x = mask * x + (1 - mask) * known
    arguments = {"mask_blur": 0.0, "num_inference_steps": 5, "seed": 3}
    got = pt(ours, image=picture, mask_image=hole, **arguments)
    assert difference(got, x.clamp(-1, 1) / 2 + 0.5) <= 1e-4
    arguments |= {"mask_blur": 1.0, "num_inference_steps": 2}
    pasted = ours(image=picture, mask_image=hole, **arguments).images[0]
    assert (np.asarray(pasted)[0, 0] == np.asarray(picture)[0, 0]).all()
    with pytest.raises(ArgumentError, match=r"no white: .* and mask_blur is 4 pixels"):
        ours(image=picture, mask_image=hole)


def test_previews_are_the_pixels(both: Callable[[str], Both]) -> None:
    for name in ("ddpm", "grey"):
        ours, _, _ = both(name)
        *_, last = ours.stream(num_inference_steps=3, output_type="pt")
        shown = ours.preview(last.latents)
        assert shown.shape == (1, 3, SIDE, SIDE)
        assert difference(shown, last.output.images.expand(-1, 3, -1, -1)) <= 1e-6


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_all_samplers_draw_with_a_learned_variance(
    both: Callable[[str], Both], sampler: str
) -> None:
    """All but "ddpm" leave it aside: a network without that half draws the same."""
    ours, theirs, _ = both("learned")
    plain = UNet(replace(ours.unet.config, out_channels=3)).eval()
    state = theirs.unet.state_dict()
    plain.load_state_dict({k: v[:3] if "conv_out" in k else v for k, v in state.items()})
    config = replace(ours.scheduler.config, variance_type="fixed_small")
    same = Pipeline(None, None, None, plain, DDPMScheduler(config))
    arguments = {"seed": 3, "num_inference_steps": 3, "sampler": sampler}
    gap = (pt(ours, **arguments) - pt(same, **arguments)).abs().max()
    assert gap > 1e-3 if sampler == "ddpm" else gap <= 1e-5


def test_defaults(both: Callable[[str], Both]) -> None:
    assert both("ddpm")[0].defaults.num_inference_steps == 1000
    assert both("ddim")[0].defaults.num_inference_steps == 50
    assert both("short v")[0].defaults.num_inference_steps == 300
    assert both("ddpm")[0].default_size() == (SIDE, SIDE)
    assert both("ddpm")[0].defaults.guidance_scale == 1
    assert both("ddpm")[0].text_models == []


@pytest.mark.parity
@pytest.mark.parametrize("name", PIPELINES)
def test_what_is_saved_diffusers_draws(
    both: Callable[[str], Both], name: str, tmp_path: Path
) -> None:
    ours, theirs, _ = both(name)
    ours.save_pretrained(tmp_path)
    kind = type(theirs)
    again = quiet(kind.from_pretrained(tmp_path))
    assert json.loads((tmp_path / "model_index.json").read_text())["_class_name"] == kind.__name__
    arguments = {"num_inference_steps": 4, "output_type": "pt"}
    want = theirs(generator=generator(3), **arguments).images
    assert torch.equal(again(generator=generator(3), **arguments).images, want)
    mine = Pipeline.from_pretrained(tmp_path, device="cpu")
    assert difference(pt(mine, seed=3, num_inference_steps=4), want) <= 1e-4
    assert mine.defaults == ours.defaults


@pytest.mark.parity
def test_folders_of_old(both: Callable[[str], Both], tmp_path: Path) -> None:
    """diffusers' first models have the U-Net in no folder of its own, under old names."""
    ours, theirs, folder = both("ddpm")
    shutil.copy(folder / "model_index.json", tmp_path)
    shutil.copy(folder / "scheduler" / "scheduler_config.json", tmp_path)
    shutil.copy(folder / "unet" / "config.json", tmp_path)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = theirs.unet.state_dict()
    for new, name in old.items():
        state = {key.replace(f".{new}.", f".{name}."): value for key, value in state.items()}
    assert "up_blocks.0.attentions.1.query.weight" in state
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    again = Pipeline.from_pretrained(tmp_path, device="cpu")
    arguments = {"seed": 3, "num_inference_steps": 2}
    assert torch.equal(pt(again, **arguments), pt(ours, **arguments))


def test_info(both: Callable[[str], Both], tmp_path: Path) -> None:
    rows = dict(describe(both("learned")[2]))
    assert rows["kind"] == "DDPMPipeline"
    assert rows["variance"] == "learned_range"
    assert rows["unet"].endswith("M parameters, float32")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p("a car"), "prompt is 'a car', but this model reads no text and has no class"),
        (lambda p: p(negative_prompt="a car"), "negative_prompt is 'a car', but this model"),
        (lambda p: p(guidance_scale=3.0), "guidance_scale .*set it to 1$"),
        (lambda p: p(clip_skip=1), "this model reads no text: clip_skip"),
        (lambda p: p(classifier_scale=1.0), "classifier_scale is 1.0, but .* no classifier"),
        (lambda p: p.load_lora_weights("x.safetensors"), "this model reads no text: LoRAs"),
        (lambda p: p.load_textual_inversion("x.bin"), "this model reads no text: a textual inv"),
        (lambda p: p.explain().__enter__(), "this model reads no text: there are no words"),
    ],
)
def test_what_needs_a_text_says_so(
    both: Callable[[str], Both], call: Callable[[Pipeline], Any], message: str
) -> None:
    with pytest.raises(ArgumentError, match=message):
        call(both("ddpm")[0])


def test_no_single_file(both: Callable[[str], Both], tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"draws pixels.*save a folder instead"):
        both("ddpm")[0].save_single_file(tmp_path / "x.safetensors")
    with pytest.raises(ArgumentError, match="draws pixels and has no VAE"):
        Pipeline.from_pretrained(both("ddpm")[2], vae=tmp_path)


@pytest.mark.parametrize(
    ("changes", "variance", "message"),
    [
        ({"in_channels": 4}, "fixed_small", "4 input channels and there is no VAE; .*1 or 3"),
        ({"out_channels": 3}, "learned_range", "3 output channels; .*'learned_range' expected 6$"),
        ({"out_channels": 4}, "fixed_small", "4 output channels; .*'fixed_small' expected 3 or 6$"),
    ],
)
def test_parts_that_do_not_fit(
    changes: dict[str, Any], variance: str, message: str, tmp_path: Path
) -> None:
    diffusers.DDPMPipeline(unet(**changes), ddpm(variance_type=variance)).save_pretrained(tmp_path)
    with pytest.raises(CheckpointError, match=message):
        Pipeline.from_pretrained(tmp_path)


def test_text_and_pixels_do_not_mix(both: Callable[[str], Both], models: Any) -> None:
    sd, _ = models("sd")
    plain = both("ddpm")[0].unet
    with pytest.raises(CheckpointError, match="so draws pixels; leave the vae out"):
        Pipeline(sd.vae, None, None, plain)
    with pytest.raises(CheckpointError, match="the U-Net reads no text; leave it out"):
        Pipeline(None, sd.text_encoder, sd.tokenizer, plain)
    with pytest.raises(CheckpointError, match="with a text and with classes is not supported"):
        Pipeline(sd.vae, sd.text_encoder, sd.tokenizer, sd.unet, id2label={"0": "a"})
