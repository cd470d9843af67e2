"""ControlNets with everything else, what they cost, and input that is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.control.controlnet import ControlNet, ControlNetConditioningEmbedding, scaled
from ldm.errors import ArgumentError, CheckpointError, LDMError
from ldm.fast.graphs import Graphs
from ldm.fast.optimize import Optimized
from ldm.fast.recorder import Recording
from ldm.hires import hires_fix
from ldm.pipeline import Pipeline
from ldm.refiner import Ensemble
from tests.fast.test_sequential import offloaded
from tests.helpers.controlnets import controlnet_for
from tests.helpers.networks import difference

SETTINGS: dict[str, Any] = {
    "num_inference_steps": 4, "height": 40, "width": 72, "seed": 5, "guidance_scale": 3.0,
    "output_type": "pt",
}  # fmt: skip


def hint(seed: int = 1, size: tuple[int, int] = (72, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


@pytest.fixture(scope="module")
def folders(models: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A small SD, and two ControlNets for it."""
    _, theirs = models("sd")
    base = tmp_path_factory.mktemp("base")
    theirs.save_pretrained(base)
    paths = [base / f"net{i}" for i in range(2)]
    for i, path in enumerate(paths):
        controlnet_for(theirs, i).save_pretrained(path)
    return base, paths


@pytest.fixture
def pipe(folders: Any) -> Pipeline:
    base, (path, _) = folders
    return Pipeline.from_pretrained(base, controlnet=path, device="cpu")


def drawn(pipe: Any, prompt: Any = "a red car", **more: Any) -> torch.Tensor:
    return pipe(prompt, **(SETTINGS | more)).images


def test_loaded_and_unloaded(folders: Any) -> None:
    base, (first, second) = folders
    pipe = Pipeline.from_pretrained(base, device="cpu")
    before = drawn(pipe)
    assert pipe.load_controlnet(first) == "net0"
    assert pipe.load_controlnet(second, "edges") == "edges"
    assert pipe.load_controlnet(first) == "net0-2"
    one, other = hint(1), hint(2)
    steered = drawn(pipe, control_image=[one, other, one])
    assert difference(steered, before) > 1e-2
    with pytest.raises(ArgumentError, match="there is a ControlNet 'edges' already"):
        pipe.load_controlnet(first, "edges")
    pipe.unload_controlnet("net0-2")
    pipe.unload_controlnet("edges")
    alone = drawn(pipe, control_image=one)
    assert torch.equal(alone, drawn(pipe, control_image=[one]))
    pipe.unload_controlnet("net0")
    assert torch.equal(drawn(pipe), before)
    with pytest.raises(ArgumentError, match="no ControlNet named 'net0' is loaded; there are"):
        pipe.unload_controlnet("net0")


class Calls:
    """Counts how often networks compute."""

    def __init__(self, network: ControlNet) -> None:
        self.steps = self.hints = 0
        network.register_forward_pre_hook(self._step)
        for part in network.modules():
            if isinstance(part, ControlNetConditioningEmbedding):
                part.register_forward_pre_hook(self._hint)

    def _step(self, *_: Any) -> None:
        self.steps += 1

    def _hint(self, *_: Any) -> None:
        self.hints += 1


def test_what_it_costs(pipe: Pipeline) -> None:
    """Hints once a run; nothing at scale 0 and outside of the range."""
    before = drawn(pipe, controlnet_conditioning_scale=0.0)
    calls = Calls(pipe.controlnets["net0"])
    drawn(pipe, control_image=hint())
    assert (calls.steps, calls.hints) == (4, 1)
    drawn(pipe, control_image=hint(), control_guidance_start=0.25, control_guidance_end=0.75)
    assert (calls.steps, calls.hints) == (6, 2)
    same = drawn(pipe, control_image=hint(), controlnet_conditioning_scale=0)
    assert (calls.steps, calls.hints) == (6, 2)
    assert torch.equal(same, before)


def test_prompts_that_change_and_join(pipe: Pipeline) -> None:
    """[a:b:2] is a for two steps, then b; a AND b at equal weights is a, alone."""
    steps = list(pipe.stream("[a:b:2]", control_image=hint(), **SETTINGS))
    first = list(pipe.stream("a", control_image=hint(), **SETTINGS))
    assert torch.equal(steps[1].latents, first[1].latents)
    assert not torch.equal(steps[2].latents, first[2].latents)
    whole = drawn(pipe, "a red car", control_image=hint())
    halves = drawn(pipe, "a red car :0.5 AND a red car :0.5", control_image=hint())
    assert difference(halves, whole) <= 1e-4
    long = " ".join(["word"] * 100)  # of another length, so that there are two calls
    for guess_mode in (False, True):
        both = drawn(pipe, [long, "a"], control_image=hint(), guess_mode=guess_mode)
        for i, text in enumerate((long, "a")):
            alone = drawn(pipe, text, control_image=hint(), guess_mode=guess_mode, seed=5 + i)
            assert difference(both[i : i + 1], alone) <= 1e-4


def test_hires_reads_the_picture_at_each_size(pipe: Pipeline) -> None:
    arguments = SETTINGS | {"output_type": "pil"}
    given = hint(3, (144, 80))
    *_, last = hires_fix(pipe, "a", hires_scale=2, control_image=given, **arguments)
    small = pipe("a", control_image=given, **arguments).images
    large = arguments | {"height": 80, "width": 144, "strength": 0.5, "image": small}
    want = pipe("a", control_image=given, **large).images[0]
    assert (np.asarray(last.output.images[0]) == np.asarray(want)).all()
    del arguments["height"], arguments["width"]
    each = {"prompt": ["a", "b"], "num_images_per_prompt": 2, "control_image": [hint(3), hint(4)]}
    *_, last = hires_fix(pipe, hires_scale=2, **arguments, **each)
    assert [image.size for image in last.output.images] == [(144, 80)] * 4


def test_faster_ways_are_the_same(pipe: Pipeline, folders: Any) -> None:
    _, (_, second) = folders
    want = drawn(pipe, control_image=hint())
    pipe.optimize()
    assert difference(drawn(pipe, control_image=hint()), want) <= 1e-4
    pipe.load_controlnet(second)  # onto what is optimized already
    both = drawn(pipe, control_image=[hint(), hint(2)])
    pipe.optimize(False)
    assert difference(drawn(pipe, control_image=[hint(), hint(2)]), both) <= 1e-4
    pipe.unload_controlnet("net1")
    assert torch.equal(drawn(pipe, control_image=hint()), want)


def test_deep_cache_of_one_step_is_exact_and_short_steps_are_steered(pipe: Pipeline) -> None:
    want = drawn(pipe, control_image=hint())
    three = drawn(pipe, control_image=hint(), deep_cache=3)
    assert not torch.equal(three, want)
    # With its only use in the short steps, the fine levels are steered.
    late = {"deep_cache": 4, "control_guidance_start": 0.5}
    plain = drawn(pipe, controlnet_conditioning_scale=0.0, deep_cache=4)
    assert difference(drawn(pipe, control_image=hint(), **late), plain) > 1e-3


@pytest.mark.parametrize("guess_mode", [False, True])
def test_the_finest_alone_is_the_first_of_all(pipe: Pipeline, guess_mode: bool) -> None:
    network = pipe.controlnets["net0"]
    x, features = torch.randn(2, 4, 5, 9), network.embed_hint(torch.rand(1, 3, 40, 72))
    whole = network(x, torch.tensor([5.0, 5.0]), torch.randn(2, 77, 32), features)
    (first,) = scaled(network.finest(x, features), 0.5, guess_mode, len(whole))
    assert torch.equal(first, scaled(whole, 0.5, guess_mode)[0])


def test_short_steps_cost_next_to_nothing(pipe: Pipeline) -> None:
    calls = Calls(pipe.controlnets["net0"])
    drawn(pipe, control_image=hint(), deep_cache=3)
    assert (calls.steps, calls.hints) == (2, 1)


def rerun(call: Any, inputs: Any) -> Recording:
    """As a CUDA graph works: the same memory in and out at every replay."""
    output = call(**inputs)

    def replay() -> None:
        new = call(**inputs)
        pairs = ((y if isinstance(y, list) else [y]) for y in (output, new))
        for memory, value in zip(*pairs, strict=True):
            memory.copy_(value)

    return Recording(inputs, output, replay)


def test_recordings_take_residuals(pipe: Pipeline) -> None:
    """With and without a ControlNet, and at every step, the plain picture; without CUDA."""
    want = drawn(pipe, control_image=hint(), control_guidance_end=0.5)
    network = pipe.controlnets["net0"]
    unet, control = Graphs(pipe.unet, rerun), Graphs(network, rerun)
    pipe.optimized = Optimized(unet, {"net0": control})
    assert torch.equal(drawn(pipe, control_image=hint(), control_guidance_end=0.5), want)
    assert (len(unet.recordings), len(control.recordings)) == (2, 1)
    assert torch.equal(drawn(pipe, control_image=hint(), control_guidance_end=0.5), want)
    drawn(pipe, control_image=hint(), tiling=True)
    assert (len(unet.recordings), len(control.recordings)) == (2, 1)


def test_tiles_and_embeddings_and_copies(pipe: Pipeline) -> None:
    tile = drawn(pipe, control_image=hint(), tiling=True)
    assert not torch.equal(tile, drawn(pipe, control_image=hint()))
    rolled = Image.fromarray(np.roll(np.asarray(hint()), 16, axis=1))
    assert not torch.equal(drawn(pipe, control_image=rolled), drawn(pipe, control_image=hint()))
    two = drawn(pipe, control_image=hint(), num_images_per_prompt=2)
    assert difference(two[:1], drawn(pipe, control_image=hint())) <= 1e-4


def test_the_refiner_is_not_steered(pipe: Pipeline, folders: Any) -> None:
    other = Pipeline.from_pretrained(folders[0], device="cpu")
    pair = Ensemble(pipe, other)
    picture = pair("a", control_image=hint(), refiner_start=0.5, **SETTINGS).images
    assert difference(picture, drawn(pipe, "a", control_image=hint())) > 1e-3


def test_it_moves_with_the_model(pipe: Pipeline) -> None:
    pipe.to(torch.bfloat16)
    assert next(pipe.controlnets["net0"].parameters()).dtype == torch.bfloat16
    assert drawn(pipe, control_image=hint()).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "control_image is missing, which net0 would read"),
        ({"control_image": [hint(), hint()]}, "control_image holds 2 pictures for 1 prompts"),
        ({"control_image": "nowhere.png"}, "nowhere.png does not exist"),
        ({"control_image": 3}, "image is of the type int; it must be a path"),
        ({"control_image": torch.rand(1, 4, 40, 72)}, "has 4 channels; this ControlNet reads 3"),
        ({"control_image": torch.rand(40, 72)}, r"shape \(40, 72\); expected"),
        ({"control_image": torch.full((3, 40, 72), 7.0)}, r"values from 7 to 7; expected \[0, 1\]"),
        ({"control_image": torch.full((3, 40, 72), torch.nan)}, "values from nan"),
        (
            {"controlnet_conditioning_scale": "1"},
            "controlnet_conditioning_scale is '1'; it must be",
        ),
        ({"controlnet_conditioning_scale": float("nan")}, "controlnet_conditioning_scale is nan"),
        ({"controlnet_conditioning_scale": [1.0, 2.0]}, "has 2 values for 1 ControlNet; give one"),
        ({"control_guidance_start": 0.6, "control_guidance_end": 0.5}, "the start must be less"),
        ({"control_guidance_end": 1.5}, r"control_guidance_end is 1.5; it must be in \[0, 1\]"),
        ({"guess_mode": 1}, "guess_mode is 1"),
    ],
)
def test_input_that_is_wrong(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    given = {"control_image": hint()} | arguments if arguments else {}
    with pytest.raises(LDMError, match=message):
        pipe.stream("a", **given)


def test_several_that_do_not_go_together(folders: Any, models: Any) -> None:
    base, paths = folders
    pipe = Pipeline.from_pretrained(base, controlnet=paths, device="cpu")
    for given, message in (
        (hint(), "control_image is one picture for 2 ControlNets"),
        ([hint()] * 3, "control_image holds 3 pictures for 2 ControlNets; give one for each"),
        ([[hint()], [hint(), hint()]], "lists of different lengths"),
    ):
        with pytest.raises(ArgumentError, match=message):
            pipe.stream("a", control_image=given)
    plain = Pipeline.from_pretrained(base, device="cpu")
    for name, value in (("control_image", hint()), ("guess_mode", True)):
        with pytest.raises(ArgumentError, match=f"{name} is of a ControlNet, and none is loaded"):
            plain.stream("a", **{name: value})
    xl, _ = models("sdxl")
    with pytest.raises(CheckpointError, match="for a model that reads texts of width 32; this"):
        xl.load_controlnet(paths[0])
    with pytest.raises(ArgumentError, match="controlnet is of the type int; give the path"):
        plain.load_controlnet(3)
    with pytest.raises(CheckpointError, match="net0 is a ControlNet, not a model; give it beside"):
        Pipeline.from_pretrained(paths[0], device="cpu")


def test_what_the_picture_records(pipe: Pipeline, tmp_path: Path) -> None:
    from ldm.images.generation_info import from_text, read_generation_info

    arguments = SETTINGS | {"output_type": "pil", "control_image": hint()}
    (picture,) = pipe("a", **arguments, controlnet_conditioning_scale=0.5, guess_mode=True).images
    info = read_generation_info(picture)
    assert info.controlnets == ("net0",)
    assert info.arguments["controlnet_conditioning_scale"] == 0.5
    assert info.arguments["guess_mode"] is True
    assert set(info.images) == {"control_image"}
    again = from_text(picture.info["parameters"])
    assert again.controlnets == ("net0",)
    assert again.arguments["controlnet_conditioning_scale"] == 0.5
    assert again.arguments["guess_mode"] is True
    tensor = pipe("a", **arguments | {"control_image": torch.rand(1, 3, 40, 72)}).images[0]
    assert "a tensor as control_image" in read_generation_info(tensor).missing


def test_blocks_of_a_controlnet_on_the_gpu_two_at_a_time(
    pipe: Pipeline, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By a stand-in: see ``tests/fast/test_sequential.py``."""
    monkeypatch.setattr("ldm.fast.sequential.LARGE", 4096)
    texts = ["a red car", "a cat"]
    want = drawn(pipe, texts, control_image=hint())
    away = offloaded(pipe)
    assert torch.equal(drawn(pipe, texts, control_image=hint()), want)
    assert away.most == 2 and away.bytes_there <= 2 * away.largest
    assert any(block in away.following for block in pipe.controlnets["net0"].modules())
