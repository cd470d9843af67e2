"""Reference-only: the source's formulas in diffusers' pipelines, and everything beside it."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import ArgumentError
from ldm.fast.compiled import REGIONS, uncompile
from ldm.hires import hires_fix
from ldm.pipeline import Pipeline
from ldm.refiner import Ensemble
from tests.helpers.controlnets import controlnet_for
from tests.helpers.networks import difference
from tests.helpers.pictures import assert_same, draw, draw_theirs, generators
from tests.helpers.shared_attention import TwoPasses

pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SETTINGS: dict[str, Any] = {
    "num_inference_steps": 4, "guidance_scale": 3.0, "height": 40, "width": 64,
}  # fmt: skip
MODES = ("attention", "adain", "attention+adain")


def noise(seed: int, size: tuple[int, int] = (64, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def latents(pipe: Pipeline, prompt: Any = "a red car", **arguments: Any) -> torch.Tensor:
    return pipe(prompt, **({"seed": 3, "output_type": "latent"} | SETTINGS | arguments)).images


@pytest.mark.parity
@pytest.mark.parametrize(
    ("family", "fidelity", "mode"),
    [(family, 0.3, mode) for family in ("sd", "sdxl", "ssd1b") for mode in MODES]
    + [("sd", 0.0, MODES[2]), ("sd", 1.0, MODES[2]), ("sd2", 0.5, MODES[0])]
    + [("koala", 0.5, MODES[2])],
)
def test_diffusers_with_two_passes(models: Any, family: str, fidelity: float, mode: str) -> None:
    """SSD-1B has no attention in the middle, KOALA no middle; the two prompts have one picture."""
    ours, theirs = models(family)
    texts = {"prompt": ["a red car", "a house"], "negative_prompt": ["blurry", "dark"]}
    two = TwoPasses(theirs, [noise(1)] * 2, (40, 64), generators(3, 2), fidelity, mode, True)
    with two.installed():
        want = draw_theirs(theirs, generator=two.generators, **texts, **SETTINGS)
    got = draw(
        ours, seed=3, reference_image=noise(1), reference_fidelity=fidelity, reference_mode=mode,
        **texts, **SETTINGS,
    )  # fmt: skip
    assert_same(got, want)


@pytest.mark.parity
@pytest.mark.parametrize("family", ["sd", "lcm"])
def test_without_guidance_and_a_picture_for_each_prompt(models: Any, family: str) -> None:
    ours, theirs = models(family)
    arguments = SETTINGS | ({"guidance_scale": 1.0} if family == "sd" else {})
    pictures = [noise(1), noise(2, (50, 61))]
    two = TwoPasses(theirs, pictures, (40, 64), generators(3, 2), 0.5, "attention", False)
    prompts = ["a red car", "a house"]
    with two.installed():
        want = draw_theirs(theirs, prompts, generator=two.generators, **arguments)
    assert_same(draw(ours, prompts, seed=3, reference_image=pictures, **arguments), want)


def test_the_model_is_bit_identical_afterwards(models: Any) -> None:
    ours, _ = models("sd")
    weights = {name: value.clone() for name, value in ours.unet.state_dict().items()}
    modules = [(name, id(module)) for name, module in ours.unet.named_modules()]
    before = latents(ours)
    read = latents(ours, reference_image=noise(1), reference_mode="attention+adain")
    assert difference(read, before) > 0.1
    stream = ours.stream("a", seed=3, reference_image=noise(1), **SETTINGS)
    next(stream)  # left in the middle
    assert torch.equal(latents(ours), before)
    stream.close()
    assert torch.equal(latents(ours), before)
    assert [(name, id(module)) for name, module in ours.unet.named_modules()] == modules
    assert all(torch.equal(weights[name], now) for name, now in ours.unet.state_dict().items())
    assert not any(module._forward_hooks for module in ours.unet.modules())


def test_an_error_in_a_run_leaves_nothing(models: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    ours, _ = models("sd")
    before = latents(ours)
    with monkeypatch.context() as patch:
        patch.setattr(type(ours.unet.conv_out), "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            latents(ours, reference_image=noise(1), reference_mode="attention+adain")
    assert torch.equal(latents(ours), before)


def test_two_threads_with_two_references(models: Any) -> None:
    """All state is the run's own."""
    ours, _ = models("sd")
    wanted = [latents(ours, reference_image=noise(i)) for i in range(2)]
    streams = [
        ours.stream("a red car", seed=3, output_type="latent", reference_image=noise(i), **SETTINGS)
        for i in range(2)
    ]
    *_, last = zip(*streams, strict=True)  # step by step, in turns
    for progress, want in zip(last, wanted, strict=True):
        assert torch.equal(progress.output.images, want)
    found: dict[int, torch.Tensor] = {}

    def work(i: int) -> None:
        found[i] = latents(ours, reference_image=noise(i % 2))

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(difference(found[i], wanted[i % 2]) < 1e-4 for i in range(4))


def test_what_it_is_drawn_with(models: Any, tmp_path: Path) -> None:
    """AND, prompts that change, long ones, an image, a mask, tiles, several pictures."""
    ours, _ = models("sd")
    white = Image.fromarray(np.eye(8, dtype=np.uint8).repeat(8, 0).repeat(8, 1) * 255)
    for more in (
        {"prompt": "a red car AND a house :0.5"},
        {"prompt": "a [red:green:0.5] car"},
        {"prompt": "a car " + "very " * 80, "negative_prompt": "bad"},
        {"image": noise(5), "strength": 0.6},
        {"image": noise(5), "mask_image": white},
        {"tiling": True},
        {"sampler": "euler_a"},
        {"sampler": "heun"},
        {"guidance_interval": (0.5, 3.0)},
    ):
        plain = latents(ours, **more)
        assert difference(latents(ours, **more, reference_image=noise(1)), plain) > 1e-2
    one = latents(ours, reference_image=noise(1), seed=4)
    two = latents(ours, reference_image=noise(1), num_images_per_prompt=2)
    assert difference(two[1:], one) < 1e-4


def test_and_counts_each_text_as_it_would_alone(models: Any) -> None:
    ours, _ = models("sd")
    plain = latents(ours, reference_image=noise(1))
    both = latents(ours, "a red car :0.5 AND a red car :0.5", reference_image=noise(1))
    assert difference(both, plain) < 1e-4


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_optimized_and_with_deep_cache(models: Any, family: str, mode: str) -> None:
    ours, _ = models(family)
    reference = {"reference_image": noise(1), "reference_mode": mode}
    want = latents(ours, **reference)
    cached = latents(ours, **reference, deep_cache=2, num_inference_steps=5)
    whole = latents(ours, **reference, num_inference_steps=5)
    assert 1e-3 < difference(cached, whole) < difference(latents(ours), want)
    try:
        ours.optimize()
        assert difference(latents(ours, **reference), want) < 1e-3
        assert difference(latents(ours, **reference), want) < 1e-3  # with what was cached
        ours.optimize(int8=True)
        assert difference(latents(ours, **reference), want) < 0.3 * float(want.abs().max())
    finally:
        ours.optimize(False)
    assert torch.equal(latents(ours, **reference), want)


def test_compiled(models: Any) -> None:
    """Blocks with shared attention are computed as they are; the others are compiled."""
    ours, _ = models("sd")
    reference = {"reference_image": noise(1), "reference_mode": "attention+adain"}
    want = latents(ours, **reference)
    calls: list[str] = []

    def watched(module: Any) -> Any:
        def call(*args: Any) -> Any:
            calls.append(type(module).__name__)
            return module._call_impl(*args)

        return call

    try:
        for module in ours.unet.modules():
            if isinstance(module, REGIONS):  # in torch.compile's place
                module._compiled_call_impl = watched(module)
        assert difference(latents(ours, **reference), want) < 1e-4
    finally:
        uncompile(ours.unet)
    assert set(calls) == {"ResnetBlock"}


def test_controlnet(models: Any, tmp_path: Path) -> None:
    """The picture's rows have no ControlNet; with DeepCache, too."""
    _, theirs = models("sd")
    theirs.save_pretrained(tmp_path)
    controlnet_for(theirs).save_pretrained(tmp_path / "net")
    ours = Pipeline.from_pretrained(tmp_path, controlnet=tmp_path / "net", device="cpu")
    hint = {"control_image": noise(7), "num_inference_steps": 5}
    plain = latents(ours, **hint)
    read = latents(ours, **hint, reference_image=noise(1))
    assert difference(read, plain) > 0.1
    off = latents(ours, **hint, reference_image=noise(1), controlnet_conditioning_scale=0.0)
    assert difference(read, off) > 0.1
    cached = latents(ours, **hint, reference_image=noise(1), deep_cache=2)
    assert 1e-3 < difference(cached, read) < difference(off, read) + difference(plain, read)


def test_attention_maps_are_of_the_drawn_rows(models: Any) -> None:
    ours, _ = models("sd")
    with ours.explain() as attention:
        read = latents(ours, reference_image=noise(1))
    assert torch.equal(read, latents(ours, reference_image=noise(1)))
    assert attention.texts() == ["a red car"]
    assert attention.maps().sum(0).allclose(torch.ones(()), atol=1e-4)


def test_two_passes_and_a_refiner(models: Any) -> None:
    ours, _ = models("sd")
    prompts, pictures = ["a car", "a house"], [noise(1), noise(2)]
    settings = SETTINGS | {"hires_scale": 1.5, "seed": 3, "num_images_per_prompt": 2}
    for reference in (None, pictures):
        *_, last = hires_fix(ours, prompts, reference_image=reference, **settings)
        images = last.output.images
        assert len(images) == 4 and images[0].size == (96, 64)
    with_one = [np.asarray(image) for image in images]
    *_, last = hires_fix(ours, "a house", reference_image=noise(2), **settings | {"seed": 5})
    assert np.abs(np.asarray(last.output.images[0]).astype(int) - with_one[2]).max() <= 1
    base, _ = models("sdxl")
    refiner, _ = models("refiner")
    pair = Ensemble(base, refiner)
    options = {"seed": 3, "output_type": "pt", "refiner_start": 0.5} | SETTINGS
    assert difference(
        pair("a car", reference_image=noise(1), **options).images, pair("a car", **options).images
    ) > 0.01  # fmt: skip


READ = {"reference_image": noise(1)}


@pytest.mark.parametrize(
    ("family", "arguments", "message"),
    [
        ("sd", READ | {"reference_fidelity": 1.5}, "reference_fidelity is 1"),
        ("sd", READ | {"reference_fidelity": "x"}, "reference_fidelity is 'x"),
        ("sd", READ | {"reference_mode": "style"}, "reference_mode is 'style"),
        ("sd", {"reference_image": [noise(1)] * 3}, "reference_image holds 3 pictures for 1 promp"),
        ("sd", {"reference_image": "https://a/b.png"}, "reference_image is 'https"),
        ("sd", {"reference_fidelity": 0.2}, "reference_fidelity is of a reference_image"),
        ("sd", {"reference_mode": "adain"}, "reference_mode is of a reference_image"),
        ("sd", READ | {"style_aligned": True}, "style_aligned and reference_"),
        (
            "sd_inpaint",
            READ | {"image": noise(2), "mask_image": Image.new("L", (9, 9), 255)},
            "reference_image is for models that read the latents alone, and this one is for inpain",
        ),
        ("pix2pix", READ | {"image": noise(2)}, "this one is for instruct"),
    ],
)
def test_wrong_input(models: Any, family: str, arguments: Any, message: str) -> None:
    ours, _ = models(family)
    with pytest.raises(ArgumentError, match=message):
        ours.stream("a", **arguments)
