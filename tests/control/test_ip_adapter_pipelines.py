"""IP-Adapters: the pictures of diffusers' own pipelines on the same small random models."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.pipeline import Pipeline
from tests.helpers.controlnets import controlnet_for
from tests.helpers.ip_adapters import (
    adapter_tensors,
    image_encoder,
    load_theirs,
    save_adapter,
    with_encoder,
)
from tests.helpers.pictures import AS_DIFFUSERS, assert_same, draw, draw_theirs, generator

diffusers = pytest.importorskip("diffusers")
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::FutureWarning:diffusers"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers"),
]
SETTINGS = {"num_inference_steps": 4, "guidance_scale": 3.0, "height": 64, "width": 128}
KINDS = ["base", "plus", "full"]
TASKS = {
    "text": ["sd", "sd2", "lcm", "sdxl", "ssd1b"],
    "image": ["sd", "sdxl"],
    "inpaint": ["sd", "sd_inpaint", "sdxl", "sdxl_inpaint"],
}
CLASSES = {"text": "", "image": "Img2Img", "inpaint": "Inpaint"}
Pair = tuple[Pipeline, Any]


def shown(seed: int, size: tuple[int, int] = (50, 41)) -> Image.Image:
    rng = np.random.default_rng(seed)
    return Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), np.uint8))


def half_mask(left: bool, size: tuple[int, int] = (128, 64)) -> Image.Image:
    mask = Image.new("L", size, 0)
    mask.paste(255, (0, 0, size[0] // 2, size[1]) if left else (size[0] // 2, 0, *size))
    return mask


@pytest.fixture(scope="module")
def adapted(models: Any, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Pair]]:
    """(ours, diffusers' pipeline of a task) of a family, with IP-Adapters of these kinds."""
    folders: dict[str, Path] = {}

    def get(family: str, kinds: list[str], task: str = "text") -> Pair:
        ours, theirs = models(family)
        if family not in folders:
            folders[family] = folder = tmp_path_factory.mktemp(family)
            image_encoder(folder / "image_encoder")
        folder, files = folders[family], []
        for i, kind in enumerate(kinds):
            end = "safetensors" if i % 2 else "bin"
            files.append(folder / f"ip-adapter-{kind}{i}.{end}")
            save_adapter(files[-1], adapter_tensors(ours.unet.config, kind, 60 + i))
            ours.load_ip_adapter(files[-1])
        loaded.append(ours)
        name = type(theirs).__name__
        if CLASSES[task] not in name:
            name = name.replace("Pipeline", f"{CLASSES[task]}Pipeline")
        encoder = image_encoder(folder / "image_encoder")
        pipe = with_encoder(theirs, encoder, getattr(diffusers, name))
        load_theirs(pipe, files)
        theirs_loaded.append(pipe)
        return ours, pipe

    loaded: list[Pipeline] = []
    theirs_loaded: list[Any] = []
    get.loaded, get.theirs = loaded, theirs_loaded  # type: ignore[attr-defined]
    yield get


def options_of(pipe: Any) -> dict[str, Any]:
    if "XL" in type(pipe).__name__:
        return {
            "add_watermarker": False,
            "force_zeros_for_empty_prompt": pipe.config.force_zeros_for_empty_prompt,
        }
    return {"requires_safety_checker": False}


@pytest.fixture(autouse=True)
def taken_off(adapted: Any) -> Iterator[None]:
    """Models are shared: what a test loads is removed."""
    yield
    while adapted.loaded:
        pipe = adapted.loaded.pop()
        pipe.unload_ip_adapter()
    while adapted.theirs:
        adapted.theirs.pop().unload_ip_adapter()


def arguments_of(task: str, picture: Image.Image, mask: Image.Image) -> dict[str, Any]:
    more: dict[str, Any] = {} if task == "text" else {"image": picture, "strength": 0.7}
    if task == "image":  # whose size diffusers takes
        more["image"] = picture.resize((72, 40))
    return more | ({"mask_image": mask} if task == "inpaint" else {})


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("task", "family"), [(t, f) for t, fs in TASKS.items() for f in fs])
def test_every_task(
    adapted: Any, picture: Any, mask: Any, task: str, family: str, kind: str
) -> None:
    ours, theirs = adapted(family, [kind], task)
    arguments = SETTINGS | {"height": 40, "width": 72} | arguments_of(task, picture, mask)
    theirs.set_ip_adapter_scale(0.7)
    want = draw_theirs(theirs, generator=generator(3), ip_adapter_image=shown(1), **arguments)
    same = AS_DIFFUSERS if task == "inpaint" else {}
    options = {"ip_adapter_image": shown(1), "ip_adapter_scale": 0.7}
    got = draw(ours, seed=3, **arguments, **options, **same)
    assert_same(got, want)
    plain = draw(ours, seed=3, **arguments, ip_adapter_scale=0.0, **same)
    assert (plain[0] - got[0]).abs().max() > 0.01


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_several_adapters_and_pictures(adapted: Any, family: str) -> None:
    ours, theirs = adapted(family, ["base", "plus", "full"])
    arguments = SETTINGS | {"num_images_per_prompt": 2, "negative_prompt": ["blurry", ""]}
    arguments["ip_adapter_image"] = [[shown(1), shown(2)], shown(3), [shown(4), shown(5), shown(6)]]
    prompts = ["a red car", "a house"]
    scales = [0.5, 1.2, 0.3]
    theirs.set_ip_adapter_scale(scales)
    want = draw_theirs(theirs, prompts, generator=generator(3), **arguments)
    assert_same(
        draw(ours, prompts, generator=generator(3), **arguments, ip_adapter_scale=scales), want
    )
    ours.set_ip_adapter_scale(scales)
    assert_same(draw(ours, prompts, generator=generator(3), **arguments), want)


def test_without_guidance(adapted: Any) -> None:
    ours, theirs = adapted("sd", ["plus"])
    arguments = SETTINGS | {"guidance_scale": 1.0, "ip_adapter_image": shown(1)}
    theirs.set_ip_adapter_scale(1.0)
    want = draw_theirs(theirs, generator=generator(3), **arguments)
    assert_same(draw(ours, seed=3, **arguments), want)


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_masks(adapted: Any, family: str) -> None:
    """A mask for each picture, with a scale for each, of two adapters."""
    from diffusers.image_processor import IPAdapterMaskProcessor

    ours, theirs = adapted(family, ["base", "plus"])
    pictures = [[shown(1), shown(2)], [shown(3)]]
    layers = [[half_mask(True), half_mask(False, (61, 33))], [half_mask(True)]]
    scales = [[0.7, 1.1], 0.6]
    processor = IPAdapterMaskProcessor()
    masks = []
    for each in layers:
        found = processor.preprocess(each, height=64, width=128)
        masks.append(found.reshape(1, len(each), 64, 128))
    theirs.set_ip_adapter_scale(scales)
    options = {"cross_attention_kwargs": {"ip_adapter_masks": masks}}
    want = draw_theirs(
        theirs, generator=generator(3), ip_adapter_image=pictures, **SETTINGS, **options
    )
    ours.set_ip_adapter_scale(scales)
    arguments = SETTINGS | {"ip_adapter_image": pictures}
    assert_same(draw(ours, seed=3, ip_adapter_masks=layers, **arguments), want)
    assert_same(draw(ours, seed=3, ip_adapter_masks=masks, **arguments), want)


BY_BLOCK: dict[str, list[Any]] = {
    "sd": [{"down": {"block_0": [0.4]}, "up": {"block_1": [0.0, 1.3]}}, {"mid": 0.8}, {"up": 0.5}],
    "sdxl": [
        {"down": {"block_1": [0.4]}, "up": {"block_0": [0.0, 1.3]}},
        {"mid": 1.0, "down": 0.2},
    ],
}


@pytest.mark.parametrize(
    ("family", "scale"), [(f, s) for f, each in BY_BLOCK.items() for s in each]
)
def test_scales_by_block(adapted: Any, family: str, scale: Any) -> None:
    ours, theirs = adapted(family, ["plus"])
    theirs.set_ip_adapter_scale(scale)
    arguments = SETTINGS | {"ip_adapter_image": shown(1)}
    want = draw_theirs(theirs, generator=generator(3), **arguments)
    ours.set_ip_adapter_scale(scale)
    assert_same(draw(ours, seed=3, **arguments), want)


@pytest.mark.parametrize("kind", ["base", "plus"])
def test_embeddings_are_diffusers_and_may_be_given(adapted: Any, tmp_path: Path, kind: str) -> None:
    from ldm.control.image_sources import load_image_embeds, save_image_embeds

    ours, theirs = adapted("sd", [kind])
    theirs.set_ip_adapter_scale(1.0)
    want = theirs.prepare_ip_adapter_image_embeds([[shown(1), shown(2)]], None, "cpu", 1, True)
    got = ours.encode_ip_adapter_image([shown(1), shown(2)])
    assert (got - want[0]).abs().max() <= 1e-5
    drawn = draw_theirs(theirs, generator=generator(3), ip_adapter_image_embeds=want, **SETTINGS)
    assert_same(draw(ours, seed=3, ip_adapter_image_embeds=want, **SETTINGS), drawn)
    save_image_embeds(tmp_path / "two.safetensors", got)
    assert torch.equal(load_image_embeds(tmp_path / "two.safetensors"), got)
    again = draw(ours, seed=3, ip_adapter_image=str(tmp_path / "two.safetensors"), **SETTINGS)
    assert_same(again, drawn)
    mixed = [str(tmp_path / "two.safetensors"), shown(3)]
    three = draw(ours, seed=3, ip_adapter_image=mixed, **SETTINGS)
    direct = draw(ours, seed=3, ip_adapter_image=[shown(3), shown(1), shown(2)], **SETTINGS)
    assert (three[0] - direct[0]).abs().max() <= 1e-4


@pytest.mark.parametrize("family", ["sd", "sdxl"])
def test_with_controlnets_and_a_lora(
    adapted: Any, models: Any, family: str, tmp_path: Path
) -> None:
    """Two ControlNets, which see no picture's tokens, an IP-Adapter and a LoRA."""
    networks = [controlnet_for(models(family)[1], seed) for seed in range(2)]
    ours, theirs = adapted(family, ["plus"])
    for i, network in enumerate(networks):
        network.save_pretrained(tmp_path / f"control{i}")
    base = "StableDiffusionXL" if family == "sdxl" else "StableDiffusion"
    cls = getattr(diffusers, f"{base}ControlNetPipeline")
    parts = {**theirs.components, "controlnet": networks}
    pipe = cls(**parts, **options_of(theirs))
    pipe.set_progress_bar_config(disable=True)
    pipe.set_ip_adapter_scale(0.8)
    lora = lora_of(pipe, tmp_path / "lora.safetensors")
    arguments = SETTINGS | {
        "ip_adapter_image": shown(1),
        "controlnet_conditioning_scale": [0.6, 0.4],
        "num_inference_steps": 4,
    }
    hints = [shown(8, (128, 64)), shown(9, (128, 64))]
    pipe.load_lora_weights(str(tmp_path), weight_name="lora.safetensors")
    try:
        want = draw_theirs(pipe, generator=generator(3), image=hints, **arguments)
    finally:
        pipe.unload_lora_weights()
    names = [ours.load_controlnet(tmp_path / f"control{i}") for i in range(2)]
    ours.load_lora_weights(lora)
    try:
        got = draw(ours, seed=3, control_image=hints, ip_adapter_scale=0.8, **arguments)
    finally:
        ours.unload_lora_weights()
        for name in names:
            ours.unload_controlnet(name)
    assert_same(got, want)


def lora_of(pipe: Any, path: Path) -> Path:
    """A random LoRA of the cross-attentions' queries and keys, under diffusers' names."""
    from safetensors.torch import save_file

    tensors = {}
    draws = torch.Generator().manual_seed(9)
    for name, module in pipe.unet.named_modules():
        if name.endswith(("attn2.to_q", "attn2.to_k")):
            rows, columns = module.weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(2, columns, generator=draws) * 0.2
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(rows, 2, generator=draws) * 0.2
    save_file(tensors, path)
    return path
