"""A global default dtype or device of PyTorch changes no picture."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.pipeline import Pipeline
from ldm.samplers import SAMPLERS, SCHEDULES

IMAGE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
MASK = Image.new("L", (64, 64), 0)
MASK.paste(255, (16, 16, 48, 48))
PARTS: list[dict[str, Any]] = [
    {"prompt": "a (red:1.3) [cat:dog:0.5] AND a [x|y] tree", "negative_prompt": "b"},
    {"image": IMAGE, "strength": 0.6, "variation_seed": 3, "variation_strength": 0.3},
    {"image": IMAGE, "mask_image": MASK, "guidance_rescale": 0.7},
    {"reference_image": IMAGE, "reference_mode": "attention+adain"},
    {"style_aligned": True, "num_images_per_prompt": 2, "tiling": True},
    {"deep_cache": 2, "clip_skip": 1, "guidance_interval": (0.2, 5.0)},
    {"prompt": ["a", "b"], "output_type": "latent", "denoising_end": 0.7},
]


@contextlib.contextmanager
def default(value: Any) -> Iterator[None]:
    """Set a default dtype or device inside."""
    if isinstance(value, torch.dtype):
        before = torch.get_default_dtype()
        torch.set_default_dtype(value)
        try:
            yield
        finally:
            torch.set_default_dtype(before)
        return
    torch.set_default_device(value)
    try:
        yield
    finally:
        torch.set_default_device(None)


def drawn(pipe: Pipeline, arguments: dict[str, Any]) -> torch.Tensor:
    """Draw two steps."""
    usual = {"prompt": "a cat", "seed": 5, "num_inference_steps": 3, "output_type": "pt"}
    if arguments.get("sampler") not in (None, "ddim", "lcm"):
        usual["num_inference_steps"] = 4
    images = pipe(**usual | arguments, progress_bar=False).images
    assert isinstance(images, torch.Tensor)
    return images


@pytest.fixture(scope="module")
def pipe(folder: Path) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu", dtype="float32")


CASES = [
    *PARTS,
    *({"sampler": name} for name in SAMPLERS if name != "lcm"),
    *({"sampler": "dpmpp_2m", "schedule": name} for name in SCHEDULES if name != "normal"),
]
DEFAULTS = [torch.float64, torch.float16, torch.bfloat16, "meta"]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_pictures_are_the_same(pipe: Pipeline, case: int) -> None:
    want = drawn(pipe, CASES[case])
    # What each sampler computes with is in the same few functions.
    for value in DEFAULTS if case < len(PARTS) else DEFAULTS[::3]:
        with default(value):
            got = drawn(pipe, CASES[case])
        assert got.dtype == want.dtype and torch.equal(got, want), value


@pytest.mark.parametrize("optimized", [False, True])
def test_loaded_models_are_the_same(folder: Path, pipe: Pipeline, optimized: bool) -> None:
    pipe.optimize(optimized)
    try:
        want = drawn(pipe, {})
    finally:
        pipe.optimize(False)
    for value in DEFAULTS:
        with default(value):
            loaded = Pipeline.from_pretrained(folder, device="cpu", dtype="float32")
            loaded.optimize(optimized)
            assert torch.equal(drawn(loaded, {}), want), value


def test_what_is_built_of_its_parts(pipe: Pipeline) -> None:
    want = pipe.preview(torch.full((1, 4, 8, 8), 0.1))
    for value in DEFAULTS:
        with default(value):
            x = torch.full((1, 4, 8, 8), 0.1, dtype=torch.float32, device="cpu")
            assert torch.equal(Pipeline(**pipe.components).preview(x), want)
