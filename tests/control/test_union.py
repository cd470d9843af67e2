"""ControlNet-Union: diffusers' numbers, files of every layout, and how it is used."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.cli.generate import main
from ldm.cli.info import main as info
from ldm.config import UNetConfig
from ldm.config.controlnet_union import ControlNetUnionConfig
from ldm.control.controlnet import scaled
from ldm.control.source import read_control
from ldm.control.union import ControlNetUnion
from ldm.errors import ArgumentError, CheckpointError
from ldm.images import read_settings
from ldm.loading import controlnet as loading
from ldm.pipeline import Pipeline
from tests.helpers.controlnets import HINTS, controlnet_for
from tests.helpers.networks import difference, ours_like, randomize
from tests.helpers.pictures import (
    AS_DIFFUSERS,
    assert_same,
    draw,
    draw_theirs,
    generator,
    quiet,
)

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SETTINGS = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 40, "width": 72}
KINDS = {"num_control_type": 8, "num_trans_layer": 2, "num_trans_head": 4}
PIPELINES = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}


def hint(seed: int, size: tuple[int, int] = (72, 40)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def union_for(theirs: Any, seed: int = 0) -> Any:
    """A small random ControlNet-Union of diffusers' for a pipeline."""
    made = diffusers.ControlNetUnionModel.from_unet(theirs.unet, load_weights_from_unet=False)
    width = made.config.block_out_channels[0]
    more = {"in_channels": 4, "num_trans_channel": width, "num_proj_channel": width}
    config = {name: value for name, value in made.config.items() if name[0] != "_"}
    made = diffusers.ControlNetUnionModel.from_config(config | HINTS | KINDS | more)
    return randomize(made, 200 + seed)


@pytest.fixture(scope="module")
def saved(models: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any, list[Any]]:
    """(folder of a small XL with two Unions and a ControlNet, diffusers' base and Unions)."""
    _, theirs = models("sdxl")
    folder = tmp_path_factory.mktemp("union")
    theirs.save_pretrained(folder / "model")
    unions = [union_for(theirs, seed) for seed in range(2)]
    for i, union in enumerate(unions):
        union.save_pretrained(folder / f"union{i}")
    controlnet_for(theirs).save_pretrained(folder / "plain")
    return folder, theirs, unions


@pytest.fixture(scope="module")
def ours(saved: Any) -> Pipeline:
    folder = saved[0]
    return Pipeline.from_pretrained(folder / "model", controlnet=folder / "union0", device="cpu")


def union_pipeline(theirs: Any, networks: Any, task: str) -> Any:
    cls = getattr(diffusers, f"StableDiffusionXLControlNetUnion{PIPELINES[task]}Pipeline")
    parts = dict(theirs.components)
    for name in ("image_encoder", "feature_extractor"):
        parts.pop(name, None)
    zeros = theirs.config.force_zeros_for_empty_prompt
    return quiet(
        cls(
            **parts,
            controlnet=networks,
            add_watermarker=False,
            force_zeros_for_empty_prompt=zeros,
        )
    )


@pytest.mark.parametrize("guess_mode", [False, True])
@pytest.mark.parametrize("modes", [[3], [3, 6]])
def test_the_numbers_are_diffusers(saved: Any, modes: list[int], guess_mode: bool) -> None:
    """The largest difference is 2e-5, of outputs of up to 13; diffusers' pipelines cannot guess."""
    theirs = saved[2][0]
    ours = ours_like(theirs, ControlNetUnion, ControlNetUnionConfig.from_dict(dict(theirs.config)))
    x = torch.randn(1, 4, 5, 9, generator=generator(0)).repeat(2, 1, 1, 1)
    hints = [torch.rand(1, 3, 40, 72, generator=generator(i)) for i in range(len(modes))]
    context = torch.randn(2, 7, theirs.config.cross_attention_dim, generator=generator(5))
    added = theirs.config.projection_class_embeddings_input_dim
    added -= 6 * theirs.config.addition_time_embed_dim
    pooled, time_ids = torch.randn(2, added, generator=generator(6)), torch.rand(2, 6) * 99
    t, scales = torch.tensor([20.0, 20.0]), [0.7, 1.2][: len(modes)]
    kinds = ours.control_type(modes)
    alone = len(modes) == 1
    features = ours.embed_hints(hints, modes, [1.0] if alone else scales)
    got = ours(x, t, context, features, pooled, time_ids, control_type=kinds)
    got = scaled(got, scales[0] if alone else 1.0, guess_mode)
    skips, middle = theirs(
        x, t, context, [hint.repeat(2, 1, 1, 1) for hint in hints], kinds.repeat(2, 1), modes,
        scales, added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        guess_mode=guess_mode, return_dict=False,
    )  # fmt: skip
    for mine, its in zip(got, [*skips, middle], strict=True):
        assert difference(mine, its) <= 2e-5


@pytest.mark.parametrize("mode", [3, [6, 1]])
@pytest.mark.parametrize("task", PIPELINES)
def test_diffusers_pictures(
    saved: Any, ours: Pipeline, picture: Any, mask: Any, task: str, mode: Any
) -> None:
    """Latents within 1e-4 and pixels within 1/255; one picture, and two with scales and ranges."""
    _, base, unions = saved
    arguments: dict[str, Any] = SETTINGS | {
        "control_image": hint(1), "control_mode": mode,
        "controlnet_conditioning_scale": 0.8,
    }  # fmt: skip
    if isinstance(mode, list):
        arguments["control_image"] = [hint(1), hint(2, (50, 61))]
        if task == "text":  # where diffusers takes lists
            arguments |= {
                "controlnet_conditioning_scale": [0.7, 1.2],
                "control_guidance_start": [0.0, 0.2],
                "control_guidance_end": [0.6, 1.0],
            }
    if task != "text":
        arguments |= {"image": picture, "strength": 0.7}
    if task == "inpaint":
        arguments["mask_image"] = mask
    pipe = union_pipeline(base, unions[0], task)
    want = draw_theirs(pipe, generator=generator(3), **arguments)
    same = AS_DIFFUSERS if task == "inpaint" else {}
    assert_same(draw(ours, seed=3, **arguments, **same), want)


def test_two_networks(saved: Any) -> None:
    folder, base, unions = saved
    both = [folder / "union0", folder / "union1"]
    ours = Pipeline.from_pretrained(folder / "model", controlnet=both, device="cpu")
    arguments = SETTINGS | {
        "control_image": [hint(1), hint(2)],
        "control_mode": [3, 0],
        "controlnet_conditioning_scale": [0.5, 0.9],
    }
    from diffusers.models.controlnets.multicontrolnet_union import MultiControlNetUnionModel

    pipe = union_pipeline(base, MultiControlNetUnionModel(unions), "text")
    want = draw_theirs(pipe, generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)
    names = arguments | {"control_mode": ["canny", "openpose"]}
    assert_same(draw(ours, seed=3, **names), want)


def test_beside_a_plain_one(saved: Any) -> None:
    """Each gives what it gives alone; a list of kinds in the list is of one network."""
    folder = saved[0]
    both = [folder / "plain", folder / "union0"]
    ours = Pipeline.from_pretrained(folder / "model", controlnet=both, device="cpu")
    arguments = SETTINGS | {"num_inference_steps": 2, "seed": 3}
    alone = Pipeline.from_pretrained(folder / "model", controlnet=folder / "union0", device="cpu")
    given = {"control_image": [hint(1), hint(2)], "control_mode": [3, 6]}
    want, _ = draw(alone, **arguments, **given)
    given = {"control_image": [hint(9), [hint(1), hint(2)]], "control_mode": [None, [3, 6]]}
    scales = {"controlnet_conditioning_scale": [0.0, 1.0]}
    assert difference(draw(ours, **arguments, **given, **scales)[0], want) <= 1e-5
    steered, _ = draw(ours, **arguments, **given)
    assert difference(steered, want) > 1e-3
    ours.unload_controlnet("plain")
    given = {"control_image": [hint(1), hint(2)], "control_mode": [3, 6]}
    assert torch.equal(draw(ours, **arguments, **given)[0], want)


def test_alone_and_in_a_batch(ours: Pipeline) -> None:
    """diffusers' transformer mixes the pictures of a batch; here, each is as it is alone."""
    prompts, arguments = ["a red car", "a house"], SETTINGS | {"num_inference_steps": 2}
    given = [[hint(1), hint(2)], [hint(3), hint(4)]]  # of each kind, for each prompt
    both, _ = draw(ours, prompts, seed=3, control_image=given, control_mode=[3, 6], **arguments)
    for i, prompt in enumerate(prompts):
        mine = [each[i] for each in given]
        alone, _ = draw(
            ours, prompt, seed=3 + i, control_image=mine, control_mode=[3, 6], **arguments
        )
        assert difference(both[i : i + 1], alone) <= 1e-4


def test_with_other_things(saved: Any) -> None:
    folder = saved[0]
    pipe = Pipeline.from_pretrained(folder / "model", controlnet=folder / "union0", device="cpu")
    given = {"control_image": [hint(1), hint(2)], "control_mode": ["canny", "tile"], "seed": 3}
    given |= SETTINGS | {"num_inference_steps": 3}
    plain, _ = draw(pipe, **given)
    pipe.optimize()
    assert difference(draw(pipe, **given)[0], plain) <= 1e-4
    pipe.optimize(False)
    assert torch.equal(draw(pipe, **given)[0], plain)
    short = draw(pipe, **given, deep_cache=3)[0]
    assert not torch.equal(short, plain)
    halves = draw(pipe, "a red car :0.5 AND a red car :0.5", **given)[0]
    assert difference(halves, plain) <= 1e-4
    *_, last = pipe_hires(pipe, given)
    assert last.output.images[0].size == (144, 80)


def pipe_hires(pipe: Pipeline, given: dict[str, Any]) -> Any:
    from ldm.hires import hires_fix

    return hires_fix(pipe, "a", hires_scale=2, **given)


def test_kinds_by_preprocessors(ours: Pipeline) -> None:
    arguments = SETTINGS | {"num_inference_steps": 2, "seed": 3}
    source = read_control("canny:x.png")
    source = type(source)(source.name, hint(1), {})
    got, _ = draw(ours, control_image=source, **arguments)
    want, _ = draw(ours, control_image=source.picture((40, 72)), control_mode=3, **arguments)
    assert torch.equal(got, want)
    tile = type(source)("tile", hint(2), {})
    both, _ = draw(ours, control_image=[source, tile], **arguments)
    given = [source.picture((40, 72)), tile.picture((40, 72))]
    want, _ = draw(ours, control_image=given, control_mode=["canny", "tile"], **arguments)
    assert torch.equal(both, want)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "control_mode is missing: union0 is a ControlNet-Union; say what the picture is: 0 o"),
        ({"control_mode": 8}, "control_mode is 8; this ControlNet has 0 to 7: 0 openpose"),
        ({"control_mode": -1}, "control_mode is -1"),
        ({"control_mode": True}, "control_mode is True"),
        ({"control_mode": "cany"}, "did you mean 'canny'"),
        ({"control_mode": 2.5}, "control_mode is 2.5"),
        ({"control_mode": [3, 6]}, "holds 1 pictures for 2 values of control_mode of union0"),
        (
            {"control_mode": [3], "controlnet_conditioning_scale": [1.0, 2.0]},
            "has 2 values for 1 ControlNet",
        ),
    ],
)
def test_input_that_is_wrong(ours: Pipeline, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        ours.stream("a", control_image=hint(1), **arguments)


def test_modes_of_others(saved: Any) -> None:
    folder = saved[0]
    plain = Pipeline.from_pretrained(folder / "model", controlnet=folder / "plain", device="cpu")
    with pytest.raises(ArgumentError, match="plain is no ControlNet-Union, and reads pictures of"):
        plain.stream("a", control_image=hint(1), control_mode=3)
    plain.load_controlnet(folder / "union0")
    with pytest.raises(ArgumentError, match="control_mode holds 3 values for 2 ControlNets"):
        plain.stream("a", control_image=[hint(1)] * 2, control_mode=[None, 3, 4])


def test_files(saved: Any, tmp_path: Path) -> None:
    """A folder and its file, with xinsir's class; and a file alone, whose names say what it is."""
    folder, base, unions = saved
    unet = UNetConfig.from_dict(dict(base.unet.config))
    want = unions[0].state_dict()
    other = tmp_path / "other"
    unions[0].save_pretrained(other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(
        json.dumps(config | {"_class_name": "ControlNetModel_Union"})
    )
    for path in (folder / "union0", other, other / "diffusion_pytorch_model.safetensors"):
        found = loading.load_controlnet(path, unet, torch.float32, torch.device("cpu"))
        assert isinstance(found, ControlNetUnion)
        assert all(torch.equal(value, want[name]) for name, value in found.state_dict().items())
    saved_again = diffusers.ControlNetUnionModel.from_config(found.config.to_dict())
    assert saved_again.state_dict().keys() == want.keys()
    save_file({"task_embedding": torch.zeros(6, 320)}, tmp_path / "x.safetensors")
    with pytest.raises(CheckpointError, match=r"x\.safetensors is a textual inversion"):
        loading.load_controlnet(tmp_path / "x.safetensors", unet, None, torch.device("cpu"))


@pytest.mark.parametrize("kinds", [6, 8])
def test_the_published_size(kinds: int) -> None:
    """xinsir's union (6) and promax (8): diffusers' names and shapes, from the file's alone."""
    xl = read_family("sdxl").unet
    hints = {"conditioning_embedding_out_channels": (48, 96, 192, 384)}
    config = ControlNetUnionConfig.like(xl, num_control_type=kinds, **hints)
    module = empty(ControlNetUnion, config)
    with torch.device("meta"):
        theirs = diffusers.ControlNetUnionModel.from_config(config.to_dict())
    shapes = {name: tuple(value.shape) for name, value in theirs.state_dict().items()}
    assert shapes == {name: tuple(value.shape) for name, value in module.state_dict().items()}
    assert loading.config_of(Path("x"), shapes) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_trans_channel": 8}, "num_trans_channel and num_proj_channel are 8"),
        ({"num_control_type": 0}, "num_control_type and num_trans_layer are 0"),
        ({"controlnet_conditioning_channel_order": "bgr"}, "is not 'rgb'"),
        ({"_class_name": "ControlNetModel"}, "_class_name"),
    ],
)
def test_configs_that_are_wrong(saved: Any, changes: dict[str, Any], message: str) -> None:
    values = dict(saved[2][0].config) | changes
    with pytest.raises(CheckpointError, match=message):
        ControlNetUnionConfig.from_dict(values)


def test_a_new_one_adds_nothing(saved: Any) -> None:
    config = ControlNetUnionConfig.from_dict(dict(saved[2][0].config))
    network = ControlNetUnion(config)
    ours_like(saved[2][0], ControlNetUnion, config)  # the names are diffusers'
    hints = network.embed_hints([torch.rand(1, 3, 40, 72)], [3], [1.0])
    assert torch.equal(hints, network.embed_hint(torch.rand(1, 3, 40, 72)) * 0 + hints)


def test_as_a_user_types_it(
    saved: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(saved[0])
    hint(1).save("a.png")
    start = ["a", "-m", "model", "--controlnet", "union0", "--steps", "2", "--seed", "1"]
    two = ["--control-image", "a.png", "--control", "tile:a.png", "--control-mode", "depth,6"]
    out = str(tmp_path / "one.png")
    assert main([*start, *two, "-o", out]) == 0
    assert read_settings(out)["arguments"]["control_mode"] == "depth,6"
    again = str(tmp_path / "again.png")
    argv = ["--from", out, "-m", "model", "--controlnet", "union0", *two[:4], "-o", again]
    assert main(argv) == 0
    assert (np.asarray(Image.open(out)) == np.asarray(Image.open(again))).all()
    capsys.readouterr()
    assert info(["union0"]) == 0
    text = capsys.readouterr().out
    assert "ControlNet-Union" in text and "3 canny" in text
    with pytest.raises(SystemExit):
        main([*start, "--control-mode", "3,,4", *two[:2]])
    assert main([*start, *two[:4], "--control-mode", "3"]) == 2
    assert "there is 1 --controlnet and 2 --control-image" in capsys.readouterr().err
