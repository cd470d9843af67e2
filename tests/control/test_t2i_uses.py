"""T2I-Adapters with everything else, what they cost, and input that is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ldm.control.t2i_adapter import T2IAdapter
from ldm.errors import ArgumentError, CheckpointError, LDMError
from ldm.fast.graphs import Graphs
from ldm.fast.optimize import Optimized
from ldm.hires import hires_fix
from ldm.pipeline import Pipeline
from ldm.refiner import Ensemble
from tests.control.test_control_uses import rerun
from tests.helpers.controlnets import controlnet_for
from tests.helpers.networks import difference
from tests.helpers.t2i_adapters import adapter, base_of, noisy, saved

SETTINGS: dict[str, Any] = {
    "num_inference_steps": 4, "height": 48, "width": 80, "seed": 5, "guidance_scale": 3.0,
    "output_type": "pt",
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[Path]]:
    """A small SD, two T2I-Adapters and a ControlNet for it."""
    theirs = base_of("sd")
    base, paths = saved(
        theirs, [adapter("full"), adapter("light", 1)], tmp_path_factory.mktemp("x")
    )
    controlnet_for(theirs).save_pretrained(base.parent / "net")
    return base, [*paths, base.parent / "net"]


@pytest.fixture
def pipe(folders: Any) -> Pipeline:
    base, (path, *_) = folders
    return Pipeline.from_pretrained(base, adapter=path, device="cpu")


def drawn(pipe: Any, prompt: Any = "a red car", **more: Any) -> torch.Tensor:
    return pipe(prompt, **(SETTINGS | more)).images


def test_loaded_and_unloaded(folders: Any) -> None:
    base, (first, second, _) = folders
    pipe = Pipeline.from_pretrained(base, device="cpu")
    before = drawn(pipe)
    assert pipe.load_t2i_adapter(first) == "adapter0"
    assert pipe.load_t2i_adapter(second, "colours") == "colours"
    assert pipe.load_t2i_adapter(first) == "adapter0-2"
    one, other = noisy(1), noisy(2)
    steered = drawn(pipe, adapter_image=[one, other, one])
    assert difference(steered, before) > 1e-2
    assert "T2I-Adapters: adapter0, colours, adapter0-2" in repr(pipe)
    with pytest.raises(ArgumentError, match="there is a T2I-Adapter 'colours' already"):
        pipe.load_t2i_adapter(first, "colours")
    pipe.unload_t2i_adapter("adapter0-2")
    pipe.unload_t2i_adapter("colours")
    alone = drawn(pipe, adapter_image=one)
    assert torch.equal(alone, drawn(pipe, adapter_image=[one]))
    pipe.unload_t2i_adapter("adapter0")
    assert torch.equal(drawn(pipe), before)
    with pytest.raises(ArgumentError, match="no T2I-Adapter named 'adapter0' is loaded; there"):
        pipe.unload_t2i_adapter("adapter0")


def count_calls(network: T2IAdapter) -> list[int]:
    calls: list[int] = []
    network.register_forward_pre_hook(lambda *_: calls.append(1))
    return calls


def test_what_it_costs(pipe: Pipeline) -> None:
    """Features once a run, of all rows; nothing at scale 0 and factor 0."""
    before = drawn(pipe, adapter_conditioning_scale=0.0)
    calls = count_calls(pipe.t2i_adapters["adapter0"])
    drawn(pipe, adapter_image=noisy(1), num_images_per_prompt=2)
    assert len(calls) == 1
    none = ({"adapter_conditioning_scale": 0}, {"adapter_conditioning_factor": 0.2})  # of 4 steps
    for off in none:
        assert torch.equal(drawn(pipe, adapter_image=noisy(1), **off), before)
    assert len(calls) == 1


def test_several_add_up(folders: Any) -> None:
    """One at a half twice is one; factors may differ; the order does not matter."""
    base, (first, second, _) = folders
    pipe = Pipeline.from_pretrained(base, adapter=[first, first], device="cpu")
    both = drawn(pipe, adapter_image=[noisy(1)] * 2, adapter_conditioning_scale=0.5)
    late = {"adapter_conditioning_scale": [1, 5], "adapter_conditioning_factor": [1, 0]}
    ignored = drawn(pipe, adapter_image=[noisy(1), noisy(2)], **late)
    pipe.unload_t2i_adapter("adapter0-2")
    one = drawn(pipe, adapter_image=noisy(1))
    assert difference(both, one) <= 1e-5
    assert torch.equal(ignored, one)
    pipe.load_t2i_adapter(second)
    two = drawn(pipe, adapter_image=[noisy(1), noisy(2)], adapter_conditioning_factor=[1, 0.5])
    swapped = Pipeline.from_pretrained(base, adapter=(second, first), device="cpu")
    again = drawn(swapped, adapter_image=[noisy(2), noisy(1)], adapter_conditioning_factor=[0.5, 1])
    assert difference(two, again) <= 1e-5
    assert difference(two, one) > 1e-3


def test_a_fraction_counts_steps(pipe: Pipeline) -> None:
    """int(4 · 0.7) = 2 steps are those of a whole run; the third is not."""
    part = [*pipe.stream("a", adapter_image=noisy(1), adapter_conditioning_factor=0.7, **SETTINGS)]
    whole = [*pipe.stream("a", adapter_image=noisy(1), **SETTINGS)]
    assert torch.equal(part[1].latents, whole[1].latents)
    assert not torch.equal(part[2].latents, whole[2].latents)


def test_prompts_that_change_and_join(pipe: Pipeline) -> None:
    whole = drawn(pipe, "a red car", adapter_image=noisy(1))
    halves = drawn(pipe, "a red car :0.5 AND a red car :0.5", adapter_image=noisy(1))
    assert difference(halves, whole) <= 1e-4
    long = " ".join(["word"] * 100)  # of another length, so that there are two calls
    pictures = [noisy(1), noisy(2)]
    both = drawn(pipe, [long, "a"], adapter_image=pictures)
    for i, text in enumerate((long, "a")):
        alone = drawn(pipe, text, adapter_image=pictures[i], seed=5 + i)
        assert difference(both[i : i + 1], alone) <= 1e-4


@pytest.mark.parametrize("masked", [False, True])
def test_from_an_image(pipe: Pipeline, masked: bool) -> None:
    """Image-to-image and inpainting: a strength of 1 is as from noise; a fraction is of the run."""
    image = {"image": noisy(7), "num_inference_steps": 8, "strength": 0.5}
    if masked:
        mask = np.zeros((48, 80), np.uint8)
        mask[:, 40:] = 255
        from PIL import Image

        image |= {"mask_image": Image.fromarray(mask)}
    plain = drawn(pipe, **image, adapter_conditioning_scale=0.0)
    steered = drawn(pipe, **image, adapter_image=noisy(1))
    assert difference(steered, plain) > 1e-3
    if masked:  # what is kept
        assert torch.equal(steered[..., :30], plain[..., :30])
    arguments = SETTINGS | image | {"adapter_image": noisy(1)}
    part = [*pipe.stream("a", **arguments, adapter_conditioning_factor=0.5)]
    whole = [*pipe.stream("a", **arguments)]
    assert len(whole) == 4
    assert torch.equal(part[1].latents, whole[1].latents)
    assert not torch.equal(part[2].latents, whole[2].latents)


def test_hires_reads_the_picture_at_each_size(pipe: Pipeline) -> None:
    arguments = SETTINGS | {"output_type": "pil"}
    given = noisy(3, (160, 96))
    *_, last = hires_fix(pipe, "a", hires_scale=2, adapter_image=given, **arguments)
    small = pipe("a", adapter_image=given, **arguments).images
    large = arguments | {"height": 96, "width": 160, "strength": 0.5, "image": small}
    want = pipe("a", adapter_image=given, **large).images[0]
    assert (np.asarray(last.output.images[0]) == np.asarray(want)).all()
    del arguments["height"], arguments["width"]
    each = {"prompt": ["a", "b"], "num_images_per_prompt": 2, "adapter_image": [noisy(3), noisy(4)]}
    *_, last = hires_fix(pipe, hires_scale=2, **arguments, **each)
    assert [image.size for image in last.output.images] == [(160, 96)] * 4


def test_with_a_controlnet_and_a_lora(pipe: Pipeline, folders: Any, tmp_path: Path) -> None:
    """Both at once differ from each alone, and each is taken off exactly."""
    _, (_, _, net) = folders
    before = drawn(pipe, adapter_image=noisy(1))
    pipe.load_controlnet(net)
    both = drawn(pipe, adapter_image=noisy(1), control_image=noisy(2))
    alone = drawn(pipe, adapter_conditioning_scale=0.0, control_image=noisy(2))
    assert min(difference(both, before), difference(both, alone)) > 1e-3
    stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    save_file(
        {
            f"{stem}.lora_down.weight": torch.randn(2, 32),
            f"{stem}.lora_up.weight": torch.randn(32, 2),
        },
        tmp_path / "lora.safetensors",
    )
    pipe.load_lora_weights(tmp_path / "lora.safetensors")
    third = drawn(pipe, adapter_image=noisy(1), control_image=noisy(2))
    assert difference(third, both) > 1e-4
    pipe.unload_lora_weights()
    assert torch.equal(drawn(pipe, adapter_image=noisy(1), control_image=noisy(2)), both)
    pipe.unload_controlnet("net")
    assert torch.equal(drawn(pipe, adapter_image=noisy(1)), before)


def test_faster_ways_are_the_same(pipe: Pipeline, folders: Any) -> None:
    _, (_, second, _) = folders
    want = drawn(pipe, adapter_image=noisy(1))
    pipe.optimize()
    assert difference(drawn(pipe, adapter_image=noisy(1)), want) <= 1e-4
    pipe.load_t2i_adapter(second)  # onto what is optimized already
    both = drawn(pipe, adapter_image=[noisy(1), noisy(2)])
    pipe.optimize(False)
    assert difference(drawn(pipe, adapter_image=[noisy(1), noisy(2)]), both) <= 1e-4
    pipe.unload_t2i_adapter("adapter1")
    assert torch.equal(drawn(pipe, adapter_image=noisy(1)), want)
    pipe.optimize(int8=True)
    assert drawn(pipe, adapter_image=noisy(1)).isfinite().all()


def test_deep_cache(pipe: Pipeline) -> None:
    """A whole step is as without; the features reach the short ones with what it computed."""
    want = [*pipe.stream("a", adapter_image=noisy(1), **SETTINGS)]
    for branch in (0, pipe.unet.config.layers[0] - 1):
        cached = {"deep_cache": 2, "deep_cache_branch": branch, "adapter_image": noisy(1)}
        steps = [*pipe.stream("a", **cached, **SETTINGS)]
        assert difference(steps[0].latents, want[0].latents) <= 1e-5
        plain = [*pipe.stream("a", **cached, adapter_conditioning_scale=0.0, **SETTINGS)]
        assert difference(steps[-1].latents, plain[-1].latents) > 1e-2


def test_recordings_take_features(pipe: Pipeline, folders: Any) -> None:
    """With and without them, and with a ControlNet, the plain picture; without CUDA."""
    pipe.load_controlnet(folders[1][2])
    arguments = {
        "adapter_image": noisy(1), "adapter_conditioning_factor": 0.5, "control_image": noisy(2),
        "control_guidance_end": 0.75,
    }  # fmt: skip
    want = drawn(pipe, **arguments)
    unet = Graphs(pipe.unet, rerun)
    pipe.optimized = Optimized(unet)
    assert torch.equal(drawn(pipe, **arguments), want)
    assert torch.equal(drawn(pipe, **arguments), want)
    assert len(unet.recordings) == 3


def test_tiles_and_copies(pipe: Pipeline) -> None:
    tile = drawn(pipe, adapter_image=noisy(1), tiling=True)
    plain = drawn(pipe, adapter_image=noisy(1))
    assert not torch.equal(tile, plain)
    two = drawn(pipe, adapter_image=noisy(1), num_images_per_prompt=2)
    assert difference(two[:1], plain) <= 1e-4


def test_odd_sizes_of_xl(tmp_path: Path) -> None:
    """Latents of an odd size, which diffusers refuses: the features still have the U-Net's."""
    base, paths = saved(base_of("sdxl"), [adapter("xl")], tmp_path)
    pipe = Pipeline.from_pretrained(base, adapter=paths[0], device="cpu")
    odd = {"height": 40, "width": 72}
    plain = drawn(pipe, **odd, adapter_conditioning_scale=0.0)
    assert difference(drawn(pipe, **odd, adapter_image=noisy(1)), plain) > 1e-3


def test_the_refiner_is_not_steered(pipe: Pipeline, folders: Any) -> None:
    other = Pipeline.from_pretrained(folders[0], device="cpu")
    pair = Ensemble(pipe, other)
    picture = pair("a", adapter_image=noisy(1), refiner_start=0.5, **SETTINGS).images
    assert difference(picture, drawn(pipe, "a", adapter_image=noisy(1))) > 1e-3


def test_it_moves_with_the_model(pipe: Pipeline) -> None:
    pipe.to(torch.bfloat16)
    assert next(pipe.t2i_adapters["adapter0"].parameters()).dtype == torch.bfloat16
    assert drawn(pipe, adapter_image=noisy(1)).isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "adapter_image is missing, which adapter0 would read; give it, or unload_t2i_adapter"),
        ({"adapter_image": [noisy(1)] * 2}, "adapter_image holds 2 pictures for 1 prompts"),
        ({"adapter_image": "nowhere.png"}, "nowhere.png does not exist"),
        ({"adapter_image": 3}, "image is of the type int; it must be a path"),
        ({"adapter_image": torch.rand(1, 4, 48, 80)}, "has 4 channels; this T2I-Adapter reads 3"),
        ({"adapter_image": torch.rand(48, 80)}, r"adapter_image has the shape \(48, 80\)"),
        ({"adapter_image": torch.full((3, 48, 80), -1.0)}, r"from -1 to -1; expected \[0, 1\]$"),
        ({"adapter_conditioning_scale": "1"}, "adapter_conditioning_scale is '1'; it must be"),
        ({"adapter_conditioning_scale": float("nan")}, "adapter_conditioning_scale is nan"),
        ({"adapter_conditioning_scale": [1.0, 2.0]}, "has 2 values for 1 T2I-Adapter; give one"),
        (
            {"adapter_conditioning_factor": 1.5},
            r"adapter_conditioning_factor is 1.5; it must be in",
        ),
        ({"adapter_conditioning_factor": [0.5, 1]}, "factor has 2 values for 1 T2I-Adapter"),
        ({"control_image": noisy(1)}, "control_image is of a ControlNet, and none is loaded"),
    ],
)
def test_input_that_is_wrong(pipe: Pipeline, arguments: dict[str, Any], message: str) -> None:
    given = {"adapter_image": noisy(1)} | arguments if arguments else {}
    with pytest.raises(LDMError, match=message):
        pipe.stream("a", **given)


def test_what_does_not_go_together(folders: Any, models: Any) -> None:
    base, paths = folders
    pipe = Pipeline.from_pretrained(base, adapter=paths[:2], device="cpu")
    for given, message in (
        (noisy(1), "adapter_image is one picture for 2 T2I-Adapters"),
        ([noisy(1)] * 3, "adapter_image holds 3 pictures for 2 T2I-Adapters; give one for each"),
        ([[noisy(1)], [noisy(1)] * 2], "adapter_image holds lists of different lengths"),
    ):
        with pytest.raises(ArgumentError, match=message):
            pipe.stream("a", adapter_image=given)
    plain = Pipeline.from_pretrained(base, device="cpu")
    for name, value in (("adapter_image", noisy(1)), ("adapter_conditioning_factor", 0.5)):
        with pytest.raises(ArgumentError, match=f"{name} is of a T2I-Adapter, and none is loaded"):
            plain.stream("a", **{name: value})
    xl, _ = models("sdxl")
    with pytest.raises(CheckpointError, match="is a T2I-Adapter for one with features of 32 chan"):
        xl.load_t2i_adapter(paths[0])
    for wrong in (3, [3]):
        with pytest.raises(ArgumentError, match="adapter is of the type int; give the path"):
            Pipeline.from_pretrained(base, adapter=wrong, device="cpu")


def test_the_wrong_option(folders: Any, tmp_path: Path) -> None:
    """A T2I-Adapter as a model, a ControlNet or a LoRA; folder and file say --t2i-adapter."""
    base, (path, _, net) = folders
    pipe = Pipeline.from_pretrained(base, device="cpu")
    file = tmp_path / "net.safetensors"
    file.write_bytes((path / "diffusion_pytorch_model.safetensors").read_bytes())
    for given in (path, file):
        for load in (
            lambda given: Pipeline.from_pretrained(given, device="cpu"),
            pipe.load_controlnet,
            pipe.load_lora_weights,
        ):
            if (given, load) == (path, pipe.load_lora_weights):
                continue  # a LoRA's folder is where its file is
            with pytest.raises(CheckpointError, match=r"T2I-Adapter.*--t2i-adapter"):
                load(given)
    for name, message in (
        ("model.diffusion_model.x", "is a model, not a LoRA; give it as --model FILE"),
        ("encoder.conv_in.weight", "is a VAE, not a LoRA; give it as --vae FILE"),
        ("x.weight", "none of which fits this model"),
    ):
        save_file({name: torch.zeros(2)}, file)
        with pytest.raises(CheckpointError, match=message):
            pipe.load_lora_weights(file)
    with pytest.raises(CheckpointError, match=r"net is a ControlNet, not a T2I-Adapter.*--contr"):
        pipe.load_t2i_adapter(net)
    with pytest.raises(CheckpointError, match="is a model without a T2I-Adapter"):
        pipe.load_t2i_adapter(base)


def test_what_the_picture_records(pipe: Pipeline, folders: Any) -> None:
    from ldm.images.generation_info import from_text, read_generation_info

    pipe.load_controlnet(folders[1][2])
    arguments = SETTINGS | {"output_type": "pil", "control_image": noisy(2)}
    more = {"adapter_conditioning_scale": 0.5, "adapter_conditioning_factor": 0.7}
    (picture,) = pipe("a", **arguments, **more, adapter_image=noisy(1)).images
    info = read_generation_info(picture)
    assert (info.controlnets, info.t2i_adapters) == (("net",), ("adapter0",))
    assert {name: info.arguments[name] for name in more} == more
    assert set(info.images) == {"control_image", "adapter_image"}
    again = from_text(picture.info["parameters"])
    assert (again.controlnets, again.t2i_adapters) == (("net",), ("t2iadapter_adapter0",))
    assert {name: again.arguments[name] for name in more} == more
    assert again.images == {"control_image": "", "adapter_image": ""}
    tensor = pipe("a", **arguments, adapter_image=torch.rand(1, 3, 48, 80)).images[0]
    assert "a tensor as adapter_image" in read_generation_info(tensor).missing
    assert json.loads(json.dumps(info.settings("0", {})))["t2i_adapters"] == ["adapter0"]
