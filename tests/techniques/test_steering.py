"""Masks that keep pixels, seamless tiles, variations between two seeds."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.samplers.noise import Noise, slerp
from ldm.techniques.tiling import seamless
from tests.helpers.networks import difference
from tests.helpers.pictures import generator

ARGUMENTS = {"num_inference_steps": 3, "guidance_scale": 3.0, "seed": 5}


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("family", ["sd", "sd_inpaint"])
@pytest.mark.parametrize("strength", [0.6, 1.0])
def test_pixels_outside_of_the_mask_come_back(
    models: Any, picture: Image.Image, family: str, strength: float
) -> None:
    ours, _ = models(family)
    black = np.zeros((40, 64), np.uint8)
    black[8:24, 16:40] = 255
    mask = Image.fromarray(black)
    arguments = {"image": picture, "mask_image": mask, "strength": strength, **ARGUMENTS}
    (exact,) = ours("a red car", mask_blur=0, **arguments).images
    kept = black == 0
    assert (array(exact)[kept] == array(picture)[kept]).all()
    assert np.abs(array(exact)[~kept].astype(int) - array(picture)[~kept]).mean() > 5
    (drawn,) = ours("a red car", mask_blur=0, paste_back=False, **arguments).images
    assert (array(drawn)[~kept] == array(exact)[~kept]).all()
    assert (array(drawn)[kept] != array(picture)[kept]).any()
    (soft,) = ours("a red car", mask_blur=2, **arguments).images
    far = np.ones_like(kept)
    far[:32, 8:48] = False
    assert (array(soft)[far] == array(picture)[far]).all()
    edge = kept & ~far
    assert (array(soft)[edge] != array(picture)[edge]).any()


def strokes_on_a_layer(half: np.ndarray) -> Image.Image:
    layer = Image.new("RGBA", half.shape[::-1], "black")
    layer.putalpha(Image.fromarray(half))
    return layer


def test_masks_of_other_sizes_and_kinds(models: Any, picture: Image.Image) -> None:
    ours, _ = models("sd")
    arguments = {"image": picture, "mask_blur": 0, **ARGUMENTS}
    half = np.zeros((20, 32), np.uint8)
    half[:, 16:] = 255
    pictures = []
    for mask in (
        Image.fromarray(half),
        Image.fromarray(half).convert("RGB"),
        Image.fromarray(half > 0),
        Image.fromarray(half).convert("P"),
        Image.fromarray(half.astype(np.int32) * 257),
        strokes_on_a_layer(half),
    ):
        pictures.append(array(ours("a red car", mask_image=mask, **arguments).images[0]))
        assert (pictures[-1] == pictures[0]).all()
    assert (pictures[0][:, :24] == array(picture)[:, :24]).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mask_image": Image.new("L", (64, 40))}, "mask_image 1 has no white"),
        ({"mask_image": Image.new("L", (64, 40), 126)}, "mask_image 1 has no white"),
        ({"mask_image": Image.new("L", (64, 40), 255), "mask_blur": -1}, "mask_blur is -1"),
        ({"mask_image": Image.new("L", (64, 40), 255), "mask_blur": math.nan}, "mask_blur is nan"),
    ],
)
def test_wrong_masks(models: Any, picture: Image.Image, arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        models("sd")[0]("a red car", image=picture, **arguments)


def test_a_white_mask_draws_all(models: Any, picture: Image.Image) -> None:
    ours, _ = models("sd")
    white = Image.new("L", (64, 40), 255)
    arguments = {"image": picture, "strength": 0.6, **ARGUMENTS}
    (one,) = ours("a red car", mask_image=white, **arguments).images
    assert np.abs(array(one).astype(int) - array(picture)).mean() > 5


def test_tiles_roll(models: Any) -> None:
    """What is rolled before comes out rolled: there are no edges any more."""
    ours, _ = models("sd")
    rng = generator(0)
    x = torch.randn(1, 4, 8, 16, generator=rng)
    t, context = torch.tensor([500.0]), torch.randn(1, 77, 32, generator=rng)

    def rolled(x: Tensor, by: int) -> Tensor:
        return x.roll((by, 2 * by), (2, 3))

    with torch.no_grad():
        unet, vae = seamless(ours.unet), seamless(ours.vae)
        one, other = unet(x, t, context), unet(rolled(x, 2), t, context)
        assert difference(rolled(one, 2), other) < 1e-5
        pixels = vae.decode(x)
        assert difference(rolled(pixels, 16), vae.decode(rolled(x, 2))) < 1e-4
        back = vae.encode(pixels)
        assert difference(rolled(back, 2), vae.encode(rolled(pixels, 16))) < 1e-4
        plain, other = ours.unet(x, t, context), ours.unet(rolled(x, 2), t, context)
        assert difference(rolled(plain, 2), other) > 1e-3


def test_tiling_of_a_call(models: Any, picture: Image.Image) -> None:
    ours, _ = models("sd")
    noise = torch.randn(1, 4, 8, 8, generator=generator(0))
    arguments = {**ARGUMENTS, "output_type": "pt"}
    one = ours("a", latents=noise, tiling=True, **arguments).images
    other = ours("a", latents=noise.roll(2, 3), tiling=True, **arguments).images
    assert difference(one.roll(16, 3), other) < 1e-4
    before = ours("a", latents=noise, **arguments).images
    stream = ours.stream("a", tiling=True, image=picture, **arguments)
    next(stream)  # another call in the middle of one is not a tile
    assert torch.equal(ours("a", latents=noise, **arguments).images, before)


def test_variations_lie_between_two_seeds(models: Any) -> None:
    ours, _ = models("sd")
    options = {"num_inference_steps": 2, "output_type": "latent", "num_images_per_prompt": 2}
    none = ours("a", seed=3, variation_seed=8, **options)
    some = ours("a", seed=3, variation_seed=8, variation_strength=0.3, **options)
    whole = ours("a", seed=3, variation_seed=8, variation_strength=1.0, **options)
    assert none.seeds == [3, 4]
    assert some.seeds == whole.seeds == [3, 3]
    assert torch.equal(none.images, ours("a", seed=3, **options).images)
    scale = whole.images.abs().max()
    assert difference(whole.images, ours("a", seed=8, **options).images) < 1e-5 * scale
    single = ours(
        "a",
        seed=3,
        variation_seed=9,
        variation_strength=0.3,
        **options | {"num_images_per_prompt": 1},
    )
    assert difference(some.images[1:], single.images) < 1e-5 * scale
    far = (some.images[0] - none.images[0]).norm()
    assert 0 < far < (whole.images[0] - none.images[0]).norm()


def test_slerp_keeps_the_length_of_noise() -> None:
    a, b = (torch.randn(2, 4, 64, 64, generator=generator(i)) for i in range(2))
    for t in (0.0, 0.25, 0.5, 1.0):
        assert (slerp(a, b, t).std((1, 2, 3)) - 1).abs().max() < 0.02
    assert difference(slerp(a, b, 0.0), a) < 1e-6
    assert difference(slerp(a, b, 1.0), b) < 1e-6
    assert torch.equal(slerp(a, a, 0.3), a)
    right = torch.tensor([[1.0, 0.0]])
    up = torch.tensor([[0.0, 1.0]])
    want = torch.tensor([[math.cos(math.pi / 6), math.sin(math.pi / 6)]])
    assert difference(slerp(right, up, 1 / 3), want) < 1e-6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"variation_strength": 0.5}, "no variation_seed"),
        ({"variation_strength": 1.5, "variation_seed": 1}, r"variation_strength is 1\.5"),
        ({"variation_strength": 0.5, "variation_seed": -1}, "variation_seed is -1"),
        (
            {"variation_strength": 0.5, "variation_seed": 1, "generator": torch.Generator()},
            "needs a seed, not a generator",
        ),
    ],
)
def test_wrong_variations(arguments: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        Noise((1, 4, 8, 8), **arguments)
