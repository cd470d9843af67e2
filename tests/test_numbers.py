"""What is no number where one is needed is told by its name, before anything is computed."""

from __future__ import annotations

import inspect
import math
from decimal import Decimal
from typing import Any

import numpy as np
import pytest
import torch

from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline

WHOLE = [
    "height",
    "width",
    "num_inference_steps",
    "num_images_per_prompt",
    "seed",
    "variation_seed",
    "clip_skip",
    "deep_cache",
    "deep_cache_branch",
    "steps_before",
]
REAL = [
    "mask_blur",
    "strength",
    "reference_fidelity",
    "guidance_scale",
    "image_guidance_scale",
    "guidance_rescale",
    "variation_strength",
    "eta",
    "classifier_scale",
    "denoising_start",
    "denoising_end",
]
PAIR = ["guidance_interval"]
NAMED = ["control_mode"]  # a number or a name: see tests/control/test_union.py


def test_every_argument_that_is_a_number_is_known() -> None:
    kinds = {
        name: str(parameter.annotation).removesuffix(" | None")
        for name, parameter in inspect.signature(Pipeline.stream).parameters.items()
        if name not in NAMED
    }
    assert [name for name, kind in kinds.items() if kind.startswith("int")] == list(
        dict.fromkeys(name for name in kinds if name in WHOLE)
    )
    assert {name for name, kind in kinds.items() if kind == "float"} == set(REAL)
    assert [name for name in kinds if "float, float" in kinds[name]] == PAIR
    assert not any("int" in kind for name, kind in kinds.items() if name not in WHOLE)


BAD = (
    [(name, value) for name in WHOLE for value in (2.5, 2.0, "2", True, [2.5], math.nan, 1j)]
    + [(name, value) for name in REAL for value in ("2", True, [2], 1j, 10**400, Decimal(1))]
    + [(name, value) for name in PAIR for value in (1.0, (1.0,), ("a", "b"), "12", (1, 2, 3))]
)


@pytest.mark.parametrize(("name", "value"), BAD)
def test_no_numbers(pipe: Pipeline, name: str, value: object) -> None:
    kind = "a whole number" if name in WHOLE else "two numbers" if name in PAIR else "a number"
    kind += ", or a list of them" * (name == "seed")
    with pytest.raises(ArgumentError) as caught:
        pipe.stream("a", **{name: value})
    assert str(caught.value).startswith(f"{name} is {value!r:.60}")
    assert str(caught.value).endswith(f"; it must be {kind}")


@pytest.fixture(scope="module")
def pipe(folder: Any) -> Pipeline:
    return Pipeline.from_pretrained(folder, device="cpu")


def test_numbers_of_other_libraries(pipe: Pipeline) -> None:
    options = {"output_type": "pt", "height": np.int64(40), "seed": np.int32(3)}
    got = pipe("a", num_inference_steps=np.int16(2), guidance_scale=np.float32(3), **options)
    want = pipe("a", num_inference_steps=2, guidance_scale=3, height=40, seed=3, output_type="pt")
    assert torch.equal(got.images, want.images)
    pipe.stream("a", guidance_interval=[0, 5], **dict.fromkeys((*WHOLE, *REAL)))
    pipe.stream("a", guidance_interval=None)


def test_steps_before(pipe: Pipeline) -> None:
    with pytest.raises(ArgumentError, match="steps_before is -1; it must be at least 0"):
        pipe.stream("a", steps_before=-1)
