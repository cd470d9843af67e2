"""ControlNet-LLLite: sd-scripts' formulas in diffusers' own pipeline, and how it is used."""

from __future__ import annotations

import copy
import math
import pickle
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from ldm.checkpoints.family import read_family
from ldm.checkpoints.folder import empty
from ldm.errors import ArgumentError, CheckpointError
from ldm.fast.graphs import Graphs
from ldm.fast.optimize import Optimized
from ldm.loading.control_lllite import TARGET, level_of, read_control_lllite, targets
from ldm.loading.single_file import names_of
from ldm.pipeline import Pipeline
from ldm.unet import UNet
from tests.helpers.controlnets import controlnet_for
from tests.helpers.networks import difference
from tests.helpers.pictures import assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = pytest.mark.parity
SETTINGS: dict[str, Any] = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64}
SETTINGS["width"] = 128
KERNELS = {8: (4, 2), 16: (4, 4), 32: (4, 4, 2)}  # of sd-scripts' depths 1, 2 and 3


def hint(seed: int = 1) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (64, 128, 3), np.uint8))


def lllite_for(unet: UNet, seed: int = 0, inner: int = 6, outer: int = 4) -> dict[str, Tensor]:
    """The tensors of a small random file, under the original names."""
    draw, found = torch.Generator().manual_seed(seed), {}
    rename = names_of(unet.config)
    for name, layer in unet.named_modules():
        if not (isinstance(layer, nn.Linear) and TARGET.match(name)) or name.startswith("up_"):
            continue
        stem = rename(f"{name}.weight").name.removesuffix(".weight").replace(".", "_")
        kernels, before = KERNELS[8 * 2 ** level_of(name, unet)], 3
        shapes = {}
        for index, kernel in enumerate(kernels):
            width = outer if index == len(kernels) - 1 else outer // 2
            shapes[f"conditioning1.{2 * index}"] = (width, before, kernel, kernel)
            before = width
        dim = layer.in_features
        shapes |= {"down.0": (inner, dim), "mid.0": (inner, inner + outer), "up.0": (dim, inner)}
        for part, shape in shapes.items():
            scale = math.prod(shape[1:]) ** -0.5
            for kind, size in (("weight", shape), ("bias", shape[:1])):
                value = torch.randn(size, generator=draw) * scale
                found[f"lllite_unet_{stem}.{part}.{kind}"] = value
    return found


def put_on(unet: nn.Module, ours: UNet, tensors: dict[str, Tensor], picture: Tensor, scale: float
           ) -> None:  # fmt: skip
    """Change the forwards of a U-Net of diffusers' as sd-scripts' formulas say."""
    modules, names = dict(unet.named_modules()), targets(ours)
    for stem in dict.fromkeys(key.partition(".")[0] for key in tensors):
        own = {key.partition(".")[2]: v for key, v in tensors.items() if key.startswith(f"{stem}.")}
        layer = modules[names[stem]]
        c = picture
        last = max(int(key.split(".")[1]) for key in own if key.startswith("conditioning1"))
        for index in range(0, last + 1, 2):
            weight = own[f"conditioning1.{index}.weight"]
            c = F.conv2d(c, weight, own[f"conditioning1.{index}.bias"], stride=weight.shape[-1])
            c = F.relu(c) if index < last else c
        c = c.flatten(2).transpose(1, 2)

        def forward(
            x: Tensor, own: Any = own, c: Tensor = c, before: Any = layer.forward
        ) -> Tensor:
            down = F.relu(F.linear(x, own["down.0.weight"], own["down.0.bias"]))
            h = torch.cat([c.repeat(len(x), 1, 1), down], dim=2)
            h = F.relu(F.linear(h, own["mid.0.weight"], own["mid.0.bias"]))
            return before(x + scale * F.linear(h, own["up.0.weight"], own["up.0.bias"]))

        layer.forward = forward  # type: ignore[method-assign]


@pytest.fixture(scope="module", params=["sd", "sdxl"])
def saved(request: Any, models: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """(folder of a small model and two files, diffusers' pipeline of it, the tensors)."""
    ours, theirs = models(request.param)
    folder = tmp_path_factory.mktemp("lllite")
    theirs.save_pretrained(folder / "model")
    controlnet_for(theirs).save_pretrained(folder / "net")
    tensors = [lllite_for(ours.unet, seed) for seed in range(2)]
    for i, each in enumerate(tensors):
        save_file(each, folder / f"lllite{i}.safetensors")
    return folder, theirs, tensors


def loaded(saved: Any, *names: str) -> Pipeline:
    folder = saved[0]
    paths = [folder / name for name in names]
    return Pipeline.from_pretrained(folder / "model", controlnet=paths, device="cpu")


def test_sd_scripts_formulas_in_diffusers(saved: Any) -> None:
    """Latents within 1e-4 and pixels within 1/255, alone and two at once."""
    _, theirs, tensors = saved
    values = torch.from_numpy(np.asarray(hint(1))).permute(2, 0, 1)[None] / 127.5 - 1
    pipe = copy.deepcopy(theirs)
    ours = loaded(saved, "lllite0.safetensors")
    put_on(pipe.unet, ours.unet, tensors[0], values, 0.8)
    given = {"control_image": hint(1), "controlnet_conditioning_scale": 0.8}
    plain = draw_theirs(theirs, generator=generator(3), **SETTINGS)
    want = draw_theirs(pipe, generator=generator(3), **SETTINGS)
    assert difference(want[0], plain[0]) > 1e-2
    assert_same(draw(ours, seed=3, **SETTINGS, **given), want)
    ours.load_controlnet(saved[0] / "lllite1.safetensors")
    put_on(pipe.unet, ours.unet, tensors[1], values, 1.0)
    want = draw_theirs(pipe, generator=generator(3), **SETTINGS)
    both = {"control_image": [hint(1)] * 2, "controlnet_conditioning_scale": [0.8, 1.0]}
    assert_same(draw(ours, seed=3, **SETTINGS, **both), want)


def test_put_on_and_taken_off(saved: Any) -> None:
    pipe = loaded(saved)
    weights = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
    before, _ = draw(pipe, seed=3, **SETTINGS)
    assert pipe.load_controlnet(saved[0] / "lllite0.safetensors") == "lllite0"
    assert pipe.unet.state_dict().keys() == weights.keys()
    off, _ = draw(pipe, seed=3, **SETTINGS, controlnet_conditioning_scale=0)
    assert torch.equal(off, before)
    on, _ = draw(pipe, seed=3, **SETTINGS, control_image=hint())
    assert not torch.equal(on, before)
    pipe.unload_controlnet("lllite0")
    assert torch.equal(draw(pipe, seed=3, **SETTINGS)[0], before)
    assert not any(module._forward_pre_hooks for module in pipe.unet.modules())
    assert all(torch.equal(v, weights[name]) for name, v in pipe.unet.state_dict().items())


def test_with_other_things(saved: Any) -> None:
    pipe = loaded(saved, "lllite0.safetensors")
    given = SETTINGS | {"control_image": hint(), "seed": 3}
    want, _ = draw(pipe, **given)
    network, counts = pipe.controlnets["lllite0"], []
    embed = network.embed_hint
    network.embed_hint = lambda x: counts.append(1) or embed(x)  # type: ignore
    late, _ = draw(pipe, **given, control_guidance_end=0.5)
    assert counts == [1]  # once a run
    assert not torch.equal(late, want)
    assert not torch.equal(draw(pipe, **given, guess_mode=True)[0], want)
    halves, _ = draw(pipe, "a red car :0.5 AND a red car :0.5", **given)
    assert difference(halves, want) <= 1e-4 * max(1.0, float(want.abs().max()))
    assert not torch.equal(draw(pipe, **given, deep_cache=2)[0], want)
    prompts = ["a red car", "a house"]
    both, _ = draw(pipe, prompts, **given | {"control_image": [hint(1), hint(2)]})
    assert difference(both[:1], want) <= 1e-4 * max(1.0, float(want.abs().max()))
    pipe.optimize()
    assert difference(draw(pipe, **given)[0], want) <= 1e-4 * max(1.0, float(want.abs().max()))
    pipe.optimize(False)
    assert torch.equal(draw(pipe, **given)[0], want)
    pipe.load_controlnet(saved[0] / "net")
    two = given | {"control_image": [hint(1), hint(2)]}
    scales = {"controlnet_conditioning_scale": [1.0, 0.0]}
    assert torch.equal(draw(pipe, **two, **scales)[0], want)
    pipe.optimized = Optimized(Graphs(pipe.unet))  # which would need CUDA: it is not used
    assert torch.equal(draw(pipe, **two, **scales)[0], want)
    pipe.optimized = Optimized()
    with pytest.raises(ArgumentError, match="compile does not go together with a ControlNet-LLL"):
        pipe.optimize(compile=True)


def test_two_threads(saved: Any) -> None:
    """What is added belongs to the call: pictures drawn at once do not mix."""
    pipe = loaded(saved, "lllite0.safetensors")
    hints, found = [hint(1), hint(2)], {}
    want = [draw(pipe, seed=3, **SETTINGS, control_image=one)[0] for one in hints]

    def work(i: int) -> None:
        found[i] = draw(pipe, seed=3, **SETTINGS, control_image=hints[i])[0]

    threads = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(difference(found[i], want[i]) <= 1e-5 for i in range(2))


def test_copies_are_steered(saved: Any) -> None:
    pipe = loaded(saved, "lllite0.safetensors")
    want = draw(pipe, seed=3, **SETTINGS, control_image=hint())[0]
    for copied in (copy.deepcopy(pipe), pickle.loads(pickle.dumps(pipe))):
        got = draw(copied, seed=3, **SETTINGS, control_image=hint())[0]
        assert torch.equal(got, want)
        (name,) = copied.controlnets
        copied.unload_controlnet(name)
        assert not torch.equal(draw(copied, seed=3, **SETTINGS)[0], want)
    assert torch.equal(draw(pipe, seed=3, **SETTINGS, control_image=hint())[0], want)


def test_the_published_size() -> None:
    """An XL file as kohya's: input and middle blocks, 136 layers; nothing is left over."""
    with torch.device("meta"):
        unet = empty(UNet, read_family("sdxl").unet)
    known = targets(unet)
    stems = {stem: name for stem, name in known.items() if re_input(stem)}
    assert len(stems) == 136
    tensors: dict[str, Tensor] = {}
    for stem, name in stems.items():
        stride, dim = 8 * 2 ** level_of(name, unet), unet.get_submodule(name).in_features
        before = 3
        for index, kernel in enumerate(KERNELS[stride]):
            width = 32 if index == len(KERNELS[stride]) - 1 else 16
            shape = (width, before, kernel, kernel)
            tensors[f"{stem}.conditioning1.{2 * index}.weight"] = torch.zeros(shape)
            tensors[f"{stem}.conditioning1.{2 * index}.bias"] = torch.zeros(width)
            before = width
        for part, shape in (("down", (64, dim)), ("mid", (64, 96)), ("up", (dim, 64))):
            tensors[f"{stem}.{part}.0.weight"] = torch.zeros(shape)
            tensors[f"{stem}.{part}.0.bias"] = torch.zeros(shape[0])
    found = read_control_lllite(Path("x"), tensors, unet, 8, None, torch.device("cpu"))
    assert (len(found.layers), found.config.divisor) == (136, 32)


def re_input(stem: str) -> bool:
    return stem.startswith(("lllite_unet_input_blocks", "lllite_unet_middle_block"))


def test_input_that_is_wrong(saved: Any, tmp_path: Path) -> None:
    pipe = loaded(saved, "lllite0.safetensors")
    with pytest.raises(ArgumentError, match=r"width and height must be multiples of \d+"):
        pipe.stream("a", control_image=hint(), height=72, width=72)
    good = saved[2][0]
    stem = next(iter(good)).partition(".")[0]
    dim = good[f"{stem}.down.0.weight"].shape[1]
    other = "lllite_unet_input_blocks_1_1_transformer_blocks_0_ff_net_2.down.0.weight"
    for changes, message in (
        ({other: torch.zeros(2, 2)}, "which is no query, key or value of pixels of this model"),
        ({f"{stem}.up.0.weight": None}, "without all tensors"),
        ({f"{stem}.down.0.weight": torch.zeros(6, dim + 1)}, f"for layers of width {dim + 1}"),
        ({f"{stem}.conditioning1.0.weight": torch.zeros(2, 3, 3, 3)}, "reduces its picture to 1/"),
        ({f"{stem}.mid.0.weight": torch.zeros(6, 3)}, "mid"),
        ({f"{stem}.conditioning1.0.weight": torch.zeros(0, 3, 4, 4)}, "damaged"),
    ):
        tensors = {name: value for name, value in (good | changes).items() if value is not None}
        save_file(tensors, tmp_path / "x.safetensors")
        with pytest.raises(CheckpointError, match=message):
            pipe.load_controlnet(tmp_path / "x.safetensors")
    assert list(pipe.controlnets) == ["lllite0"]
