"""T2I-Adapters: the pictures of diffusers' own pipelines on the same small random models."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ldm.pipeline import Pipeline
from tests.helpers.pictures import Drawn, assert_same, draw, generator
from tests.helpers.t2i_adapters import adapter, adapter_pipeline, base_of, noisy, saved

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SETTINGS = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 48, "width": 80}
KINDS = [("sd", "full"), ("sd", "light"), ("sd", "grey"), ("sdxl", "xl")]


@pytest.fixture(scope="module")
def adapted(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(ours with T2I-Adapters, diffusers' pipeline with them) of a family and kinds."""
    made: dict[tuple[str, ...], Any] = {}

    def get(family: str, *kinds: str) -> tuple[Pipeline, Any]:
        if (family, *kinds) not in made:
            theirs = base_of(family)
            adapters = [adapter(kind, seed) for seed, kind in enumerate(kinds)]
            base, paths = saved(theirs, adapters, tmp_path_factory.mktemp(family))
            ours = Pipeline.from_pretrained(base, adapter=paths, device="cpu")
            made[(family, *kinds)] = ours, adapter_pipeline(theirs, adapters)
        return made[(family, *kinds)]

    return get


def theirs_drawn(pipe: Any, prompt: Any, **ours: Any) -> Drawn:
    """diffusers calls the picture "image"; these pipelines have an older callback."""
    given = {("image" if k == "adapter_image" else k): v for k, v in ours.items()}
    latents = []

    def keep(step: int, t: Any, x: torch.Tensor) -> None:
        latents.append(x.clone())

    images = pipe(prompt, callback=keep, **given).images
    return latents[-1], images


def check(ours: Pipeline, theirs: Any, prompt: Any = "a red car", **arguments: Any) -> Drawn:
    """Draw with both: latents within 1e-4, pixels within 1/255."""
    want = theirs_drawn(theirs, prompt, generator=generator(3), **arguments)
    got = draw(ours, prompt, generator=generator(3), **arguments)
    assert_same(got, want)
    return got


@pytest.mark.parametrize("scale", [1.0, 0.6])
@pytest.mark.parametrize(("family", "kind"), KINDS)
def test_one(adapted: Any, family: str, kind: str, scale: float) -> None:
    ours, theirs = adapted(family, kind)
    picture = noisy(1, mode="L" if kind == "grey" else "RGB")
    got = check(ours, theirs, **SETTINGS, adapter_image=picture, adapter_conditioning_scale=scale)
    plain = draw(ours, generator=generator(3), **SETTINGS, adapter_conditioning_scale=0.0)
    assert (got[0] - plain[0]).abs().max() > 1e-2


@pytest.mark.parametrize(("family", "kinds"), [("sd", ("full", "light")), ("sdxl", ("xl", "xl"))])
def test_two_with_scales(adapted: Any, family: str, kinds: tuple[str, ...]) -> None:
    ours, theirs = adapted(family, *kinds)
    arguments = SETTINGS | {
        "adapter_image": [noisy(1), noisy(2, (50, 61))],
        "adapter_conditioning_scale": [0.7, 0.4],
        "negative_prompt": "blurry",
    }
    check(ours, theirs, **arguments)


@pytest.mark.parametrize("factor", [0.0, 0.5, 0.7, 1.0])
def test_a_fraction_of_the_steps(adapted: Any, factor: float) -> None:
    ours, theirs = adapted("sdxl", "xl")
    arguments = SETTINGS | {"num_inference_steps": 7, "adapter_image": noisy(1)}
    check(ours, theirs, **arguments, adapter_conditioning_factor=factor)


@pytest.mark.parametrize(("family", "kind"), [("sd", "full"), ("sdxl", "xl")])
def test_a_picture_for_each_prompt(adapted: Any, family: str, kind: str) -> None:
    ours, theirs = adapted(family, kind)
    arguments = SETTINGS | {"adapter_image": [noisy(1), noisy(2)]}
    check(ours, theirs, ["a red car", "a house"], **arguments)


@pytest.mark.parametrize("guidance_scale", [1.0, 3.0])
def test_several_pictures_of_a_prompt(adapted: Any, guidance_scale: float) -> None:
    ours, theirs = adapted("sd", "full")
    arguments = SETTINGS | {"guidance_scale": guidance_scale, "num_images_per_prompt": 3}
    check(ours, theirs, **arguments, adapter_image=noisy(1))


@pytest.mark.parametrize(
    ("family", "kind", "size"), [("sd", "full", (56, 40)), ("sdxl", "xl", (48, 32))]
)
def test_the_size_is_the_pictures(
    adapted: Any, family: str, kind: str, size: tuple[int, int]
) -> None:
    """As diffusers, rounded down to what the adapter divides: 8 or 16 pixels."""
    ours, theirs = adapted(family, kind)
    picture = noisy(1, (61, 45))
    got = check(ours, theirs, num_inference_steps=2, adapter_image=picture)
    assert got[1][0].size == size


@pytest.mark.parametrize(("family", "kind"), [("sd", "full"), ("sdxl", "xl")])
def test_tensors_are_taken_as_they_are(adapted: Any, family: str, kind: str) -> None:
    ours, theirs = adapted(family, kind)
    rows = torch.rand((2, 3, 48, 80), generator=generator(5))
    check(ours, theirs, ["a red car", "a house"], **SETTINGS, adapter_image=rows)


def test_odd_latents(adapted: Any) -> None:
    ours, theirs = adapted("sd", "light")
    check(ours, theirs, **SETTINGS | {"height": 40, "width": 72}, adapter_image=noisy(1, (72, 40)))


SAMPLERS = {"euler": "EulerDiscreteScheduler", "dpmpp_2m": "DPMSolverMultistepScheduler"}


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_samplers(adapted: Any, sampler: str) -> None:
    ours, theirs = adapted("sdxl", "xl")
    before = theirs.scheduler
    cls = getattr(diffusers, SAMPLERS[sampler])
    theirs.scheduler = cls.from_config(before.config, timestep_spacing="leading")
    arguments = SETTINGS | {"adapter_image": noisy(1), "adapter_conditioning_factor": 0.5}
    want = theirs_drawn(theirs, "a red car", generator=generator(3), **arguments)
    theirs.scheduler = before
    assert_same(draw(ours, seed=3, sampler=sampler, **arguments), want)
