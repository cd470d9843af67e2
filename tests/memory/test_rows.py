"""Many rows of large pictures are computed in several calls, with the pictures of one call."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.control.preprocessors import scribble
from ldm.loading.needed import networks_of
from ldm.memory import networks
from ldm.memory.estimate import Drawing, estimate, in_one_call
from ldm.pipeline import Pipeline
from tools.readme_pictures import drawing

LATENTS = 16 * 16  # of the built-in model's pictures
LONG = "a red car on a yellow background, " * 20  # of two chunks


@pytest.fixture(scope="module")
def pipe() -> Pipeline:
    return Pipeline.from_pretrained(device="cpu", dtype="float32")


def draw(
    pipe: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    most: int,
    prompt: str | list[str],
    **more: Any,
) -> tuple[list[int], Tensor]:
    """Draw two steps of three pictures, at most so many rows at once: rows of the calls, and x."""
    calls: list[int] = []

    def watch(unet: nn.Module, arguments: tuple[Tensor, ...]) -> None:
        calls.append(len(arguments[0]))

    monkeypatch.setattr(networks, "LATENTS", most * LATENTS)
    hook = pipe.unet.register_forward_pre_hook(watch)
    more = {"num_images_per_prompt": 3, "num_inference_steps": 2, "seed": 5} | more
    try:
        return calls, pipe(prompt, output_type="latent", **more).images
    finally:
        hook.remove()


@pytest.mark.parametrize(
    ("height", "width", "most"), [(64, 64, 8), (128, 128, 2), (96, 96, 3), (256, 256, 1)]
)
def test_how_many(height: int, width: int, most: int) -> None:
    assert networks.rows_at_once(height, width) == most


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize(
    ("prompt", "more", "most", "step"),
    [
        ("a red car AND a cat", {}, 4, [4, 4, 1]),
        ("a red car", {"negative_prompt": "blue"}, 2, [2, 2, 2]),
        ("a red car", {"guidance_scale": 1.0}, 5, [3]),
        (["a red car", LONG, "a cat"], {"num_images_per_prompt": 1}, 3, [3, 1, 2]),  # two lengths
    ],
)
def test_the_pictures_are_those_of_one_call(
    pipe: Pipeline,
    monkeypatch: pytest.MonkeyPatch,
    optimize: bool,
    prompt: str | list[str],
    more: dict[str, Any],
    most: int,
    step: list[int],
) -> None:
    pipe.optimize(optimize)
    _, want = draw(pipe, monkeypatch, 100, prompt, **more)
    calls, got = draw(pipe, monkeypatch, most, prompt, **more)
    assert calls == step * 2
    assert (got - want).abs().max() < 1e-4


@pytest.mark.parametrize(
    "more",
    [
        {"control_image": scribble(drawing(128))},
        {"control_image": scribble(drawing(128)), "guess_mode": True},
        {"ip_adapter_image": drawing(128)},
        {"image": drawing(128), "strength": 0.9},
    ],
    ids=["control", "guess_mode", "ip_adapter", "image"],
)
def test_what_steers_goes_with_its_rows(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    want, got = (draw(pipe, monkeypatch, most, "a fish", **more)[1] for most in (100, 2))
    assert (got - want).abs().max() < 1e-4


def test_heat_maps_are_those_of_one_call(pipe: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    maps = []
    for most in (100, 2):
        with pipe.explain() as attention:
            draw(pipe, monkeypatch, most, "a red car")
        maps.append(torch.stack([attention.maps(picture=i) for i in range(3)]))
    assert (maps[0] - maps[1]).abs().max() < 1e-4


@pytest.mark.parametrize("more", [{"deep_cache": 2}, {"style_aligned": True}], ids=str)
def test_what_needs_one_call_has_one(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch, more: dict[str, Any]
) -> None:
    pipe.optimize(False)
    calls, _ = draw(pipe, monkeypatch, 2, "a red car", **more)
    assert set(calls) == {6}


def test_the_estimate_counts_the_rows_of_a_call(pipe: Pipeline) -> None:
    model = networks_of(pipe)

    def taken(count: int, **more: Any) -> int:
        return estimate(model, Drawing(1024, 1024, count, **more)).denoising

    assert taken(2) < 1.1 * taken(1)
    assert not in_one_call(False, 1, 0)
    assert in_one_call(True, 1, 0) and in_one_call(False, 2, 0) and in_one_call(False, 1, 1)
    for more in ({"together": True}, {"reference": True}):
        assert taken(2, **more) > 1.8 * taken(1, **more)
