"""Single files under the original names: full-size layouts, small whole models, round trips."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from conftest import assert_same, draw, draw_theirs, generator
from families import FAMILIES as MODELS
from families import for_task

from ldm import loading
from ldm.checkpoints import family as families
from ldm.checkpoints.family import Family, read_family
from ldm.pipeline import Pipeline

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]

# Small models of MODELS → the family whose layout they have.
LAYOUTS = {
    "sd": "sd1", "sd_inpaint": "sd1", "lcm": "sd1", "sd2": "sd2", "sdxl": "sdxl",
    "refiner": "sdxl_refiner", "sdxl_inpaint": "sdxl",
}  # fmt: skip


def small(pipe: Pipeline, layout: str) -> Family:
    """The family of a small model: its own sizes, the layout of the full-size one."""
    full = read_family(layout)
    texts = tuple(replace(text, config=getattr(pipe, text.part).config) for text in full.texts)
    config = replace(pipe.scheduler.config, prediction_type="epsilon")
    unet = replace(pipe.unet.config, in_channels=4, time_cond_proj_dim=None)
    return replace(full, unet=unet, vae=pipe.vae.config, scheduler=config, texts=texts)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Any]]:
    """(our pipeline from a single file, theirs, the file, the family) of a small model."""
    made: dict[str, Any] = {}
    patch = pytest.MonkeyPatch()

    def get(name: str) -> Any:
        if name in made:
            return made[name]
        folder = tmp_path_factory.mktemp(name)
        theirs = MODELS[name]()
        theirs.save_pretrained(folder)
        ours = Pipeline.from_pretrained(folder, device="cpu")
        family = small(ours, LAYOUTS[name])
        path = folder / "single.safetensors"
        for module in (families, loading):
            patch.setattr(module, "FAMILIES", {ours.unet.config.cross_attention_dim: name})
            patch.setattr(module, "read_family", lambda _: family)
        ours.save_single_file(path)
        made[name] = Pipeline.from_pretrained(path, device="cpu"), theirs, path, folder
        return made[name]

    yield get
    patch.undo()


@pytest.mark.parametrize("name", ["sd", "lcm", "sd2", "sdxl"])
def test_a_single_file_draws_the_picture_of_its_folder(files: Any, name: str) -> None:
    ours, theirs, _, _ = files(name)
    arguments = {"num_inference_steps": 3, "guidance_scale": 3.0, "height": 40, "width": 64}
    want = draw_theirs(for_task(theirs, "text"), generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)


@pytest.mark.parametrize("name", [name for name in LAYOUTS if name != "lcm"])
def test_diffusers_reads_what_we_write(files: Any, name: str) -> None:
    _, theirs, path, folder = files(name)
    loaded = type(theirs).from_single_file(path, config=str(folder), local_files_only=True)
    for part, module in theirs.components.items():
        if isinstance(module, torch.nn.Module):
            values = getattr(loaded, part).state_dict()
            for key, value in module.state_dict().items():
                assert torch.equal(values[key], value), f"{part} {key}"
