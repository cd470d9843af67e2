"""What other programs write into pictures: read, or refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.errors import ImageError
from ldm.images.generation_info import GenerationInfo, read_generation_info
from tests.images.pictures import exif, png

READ = {
    "prompt": "a cat",
    "negative_prompt": "dog",
    "num_inference_steps": 30,
    "guidance_scale": 6.5,
    "seed": 5,
    "width": 512,
    "height": 768,
    "sampler": "dpmpp_2m",
    "schedule": "karras",
}

FOOOCUS: dict[str, Any] = {
    "prompt": "a cat",
    "negative_prompt": "dog",
    "full_prompt": ["a cat, sharp"],
    "full_negative_prompt": ["dog, blur"],
    "base_model": "xl",
    "base_model_hash": "12ab",
    "clip_skip": 2,
    "guidance_scale": 6.5,
    "loras": [["detail", 0.5, "34cd"]],
    "metadata_scheme": "fooocus",
    "performance": "Speed",
    "refiner_model": "None",
    "resolution": "(512, 768)",
    "sampler": "dpmpp_2m",
    "scheduler": "karras",
    "seed": "5",
    "sharpness": 2,
    "steps": 30,
    "styles": "['Fooocus V2']",
    "vae": "Default (model)",
    "version": "Fooocus v2.4.3",
}


def test_fooocus(tmp_path: Path) -> None:
    for path in (png(tmp_path, parameters=FOOOCUS), exif(tmp_path, FOOOCUS)):
        info = read_generation_info(path)
        assert info.arguments == READ | {"clip_skip": 1}
        assert (info.model, info.vae) == ("xl", None)
        assert info.notes == ("sharpness 2", "styles ['Fooocus V2']", "LoRA detail 0.5")


def test_fooocus_beside_the_exif_block(tmp_path: Path) -> None:
    """Fooocus writes UserComment where cameras do not."""
    data = Image.Exif()
    data[0x9286] = json.dumps(FOOOCUS)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=data)
    info = read_generation_info(tmp_path / "a.webp")
    assert info.arguments["prompt"] == "a cat"


def test_ruined_fooocus(tmp_path: Path) -> None:
    settings = {
        "Prompt": "a cat",
        "Negative": "dog",
        "steps": 30,
        "cfg": 6.5,
        "width": 512,
        "height": 768,
        "seed": 5,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "base_model_name": "xl.safetensors",
        "software": "RuinedFooocus",
    }
    info = read_generation_info(png(tmp_path, parameters=settings))
    assert (info.arguments, info.model, info.notes) == (READ, "xl", ())


def test_swarmui(tmp_path: Path) -> None:
    settings = {
        "sui_image_params": {
            "prompt": "a cat",
            "negativeprompt": "dog",
            "model": "OfficialStableDiffusion/sd_xl_base_1.0",
            "images": 3,
            "seed": "5",
            "steps": 30,
            "cfgscale": 6.5,
            "aspectratio": "2:3",
            "width": 512,
            "height": "768",
            "sampler": "dpmpp_2m",
            "scheduler": "karras",
            "loras": "x, y",
            "loraweights": "0.5, 0.25",
            "clipstopatlayer": "-2",
            "automaticvae": True,
            "swarm_version": "0.9.3.1",
        },
        "sui_extra_data": {"date": "2025-01-25"},
        "sui_models": [{"name": "a.safetensors", "param": "model", "hash": "0xd7"}],
    }
    little = b"UNICODE\0" + json.dumps(settings, indent=2).encode("utf-16-le")
    for path in (png(tmp_path, parameters=settings), exif(tmp_path, little)):
        info = read_generation_info(path)
        assert info.arguments == READ | {"clip_skip": 1}
        assert info.model == "OfficialStableDiffusion/sd_xl_base_1.0"
        assert info.notes == ("LoRA x 0.5", "LoRA y 0.25")
    settings["sui_image_params"] = {"prompt": "a", "initimage": "x", "initimagecreativity": 0.3}
    info = read_generation_info(png(tmp_path, parameters=settings))
    assert (info.arguments["strength"], info.images) == (0.3, {"image": ""})


def invoke(**more: Any) -> dict[str, Any]:
    return {
        "generation_mode": "txt2img",
        "positive_prompt": "a cat",
        "negative_prompt": "dog",
        "width": 512,
        "height": 768,
        "seed": 5,
        "rand_device": "cpu",
        "cfg_scale": 6.5,
        "cfg_rescale_multiplier": 0.0,
        "steps": 30,
        "scheduler": "dpmpp_2m_k",
        "clip_skip": 1,
        "model": {"model_name": "dream", "base_model": "sd-1"},
        "loras": [{"lora": {"model_name": "x"}, "weight": 0.75}],
        "app_version": "3.5.0",
    } | more


def test_invokeai(tmp_path: Path) -> None:
    info = read_generation_info(png(tmp_path, invokeai_metadata=invoke()))
    assert info.arguments == READ | {"clip_skip": 1}
    assert (info.model, info.notes) == ("dream", ("LoRA x 0.75",))
    more = {
        "generation_mode": "sdxl_img2img",
        "strength": 0.4,
        "model": {"name": "other", "key": "k"},
        "vae": {"name": "v"},
        "positive_prompt": "a cat++",
        "loras": [{"model": {"name": "y"}, "weight": 1}],
    }
    info = read_generation_info(png(tmp_path, invokeai_metadata=invoke(**more)))
    assert (info.arguments["strength"], info.model, info.vae) == (0.4, "other", "v")
    assert info.notes == ("LoRA y 1", "weights of words as word+")


DREAM = '"a cat [dog]" -s 30 -S 5 -W 512 -H 768 -C 6.5 -A k_dpmpp_2 -G 0.9 -U 4 0.95'


def test_invokeai_before(tmp_path: Path) -> None:
    image = {
        "prompt": [{"prompt": "a cat [dog]", "weight": 1.0}],
        "steps": 30,
        "cfg_scale": 6.5,
        "height": 768,
        "width": 512,
        "seed": 5,
        "type": "txt2img",
        "sampler": "k_dpmpp_2m",
        "postprocessing": None,
    }
    settings = {"model_weights": "dream", "app_version": "2.3.0", "image": image}
    want = READ | {"schedule": "normal"}
    info = read_generation_info(png(tmp_path, sd_dash_metadata=settings, Dream=DREAM))
    assert (info.arguments, info.model) == (want, "dream")
    image |= {"prompt": "a cat [dog]"}
    assert read_generation_info(png(tmp_path, sd_dash_metadata=settings)).arguments == want
    info = read_generation_info(png(tmp_path, Dream=DREAM.replace("_2 ", "_2m ")))
    assert info.arguments == want
    info = read_generation_info(png(tmp_path, Dream=DREAM))
    assert "sampler" not in info.arguments and "Sampler k_dpmpp_2" in info.notes


def test_novelai(tmp_path: Path) -> None:
    comment = {
        "prompt": "a cat",
        "uc": "dog",
        "steps": 30,
        "scale": 6.5,
        "seed": 5,
        "strength": 0.4,
        "noise": 0.0,
        "width": 512,
        "height": 768,
        "sampler": "k_dpmpp_2m",
        "noise_schedule": "karras",
        "sm": False,
        "signed_hash": "x",
        "v4_prompt": {"caption": {"base_caption": "a cat"}},
    }
    chunks = {
        "Software": "NovelAI",
        "Source": "Stable Diffusion 1D44365E",
        "Description": "a cat",
        "Title": "AI generated image",
    }
    info = read_generation_info(png(tmp_path, Comment=comment, **chunks))
    assert (info.arguments, info.model) == (READ, "Stable Diffusion 1D44365E")
    assert info.images == {}
    del comment["prompt"]  # as the first ones were
    chunks["Description"] = "a {cat}"
    info = read_generation_info(png(tmp_path, Comment=comment | {"sm": True}, **chunks))
    assert info.arguments["prompt"] == "a {cat}"
    assert info.notes[-2:] == ("sm true", "weights of words as {word}")
    with pytest.raises(ImageError, match="by NovelAI, are missing"):
        read_generation_info(png(tmp_path, **chunks))


def test_draw_things(tmp_path: Path) -> None:
    settings = {
        "c": "a cat",
        "uc": "dog",
        "steps": 30,
        "scale": 6.5,
        "seed": 5,
        "size": "512x768",
        "sampler": "DPM++ 2M Karras",
        "model": "sd_v1.5_f16.ckpt",
        "strength": 1,
        "v2": {"loras": []},
    }
    xmp = (
        '<x:xmpmeta xmlns:x="adobe:ns:meta/"><exif:UserComment><rdf:Alt><rdf:li>'
        + json.dumps(settings).replace('"', "&quot;")
        + "</rdf:li></rdf:Alt></exif:UserComment></x:xmpmeta>"
    )
    path = png(tmp_path, **{"XML:com.adobe.xmp": xmp})
    for each in (path, exif(tmp_path, settings)):
        info = read_generation_info(each)
        assert (info.arguments, info.model) == (READ, "sd_v1.5_f16")
    info = read_generation_info(exif(tmp_path, settings | {"strength": 0.5}))
    assert info.arguments["strength"] == 0.5


@pytest.mark.parametrize("capitals", [True, False])
def test_easy_diffusion(tmp_path: Path, capitals: bool) -> None:
    settings = {
        "prompt": "a cat",
        "negative_prompt": "dog",
        "seed": 5,
        "use_stable_diffusion_model": "models/sd-v1-4.ckpt",
        "clip_skip": False,
        "sampler_name": "dpmpp_2m",
        "width": 512,
        "height": 768,
        "num_inference_steps": 30,
        "guidance_scale": 6.5,
    }
    if capitals:
        names = {"use_stable_diffusion_model": "Stable Diffusion model", "sampler_name": "Sampler"}
        names |= {"num_inference_steps": "Steps"}
        settings = {
            names.get(key, key.replace("_", " ").title()): value for key, value in settings.items()
        }
    want = READ | {"schedule": "normal"}
    for path in (exif(tmp_path, settings), png(tmp_path, **settings)):
        info = read_generation_info(path)
        assert (info.arguments, info.model) == (want, "sd-v1-4")


@pytest.mark.parametrize(
    "settings",
    [
        {"prompt": "a cat", "negative_prompt": "dog", "seed": 5, "steps": 30},
        {"some_params": {"prompt": "a cat", "negativeprompt": "dog", "seed": 5, "steps": 30}},
        {"positive_prompt": "a cat", "Negative": "dog", "seed": "5", "num_inference_steps": 30.0},
    ],
)
def test_plain_json(tmp_path: Path, settings: dict[str, Any]) -> None:
    want = {"prompt": "a cat", "negative_prompt": "dog", "seed": 5, "num_inference_steps": 30}
    for path in (png(tmp_path, parameters=settings), exif(tmp_path, settings)):
        assert read_generation_info(path).arguments == want


# ComfyUI

LOADER = {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "dir/m.safetensors"}}


def text(content: Any, clip: str = "4") -> dict[str, Any]:
    return {"class_type": "CLIPTextEncode", "inputs": {"text": content, "clip": [clip, 1]}}


def graph(**changes: dict[str, Any]) -> dict[str, Any]:
    """ComfyUI's first example; ``n3`` is node 3."""
    sampler = {
        "seed": 5,
        "steps": 30,
        "cfg": 6.5,
        "sampler_name": "dpmpp_2m",
        "scheduler": "karras",
        "denoise": 1,
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    empty = {"width": 512, "height": 768, "batch_size": 1}
    nodes: dict[str, Any] = {
        "3": {"class_type": "KSampler", "inputs": sampler},
        "4": LOADER,
        "5": {"class_type": "EmptyLatentImage", "inputs": empty},
        "6": text("a cat"),
        "7": text("dog"),
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0]}},
    }
    for name, change in changes.items():
        node = nodes.setdefault(name.removeprefix("n"), {"class_type": "", "inputs": {}})
        node["class_type"] = change.pop("class_type", node["class_type"])
        node["inputs"] = node["inputs"] | change
    return nodes


def drawn(folder: Path, **changes: dict[str, Any]) -> GenerationInfo:
    return read_generation_info(png(folder, prompt=graph(**changes), workflow={"nodes": []}))


def test_comfyui(tmp_path: Path) -> None:
    info = drawn(tmp_path)
    assert (info.arguments, info.model, info.notes) == (READ, "m", ())
    data = Image.Exif()
    data[0x0110], data[0x010F] = "prompt:" + json.dumps(graph()), 'workflow:{"nodes": []}'
    Image.new("RGB", (8, 8)).save(tmp_path / "a.webp", exif=data)
    assert read_generation_info(tmp_path / "a.webp").arguments == READ
    both = {"prompt": graph(n9={"filename_prefix": "Fooocus"}), "workflow": {"nodes": []}}
    assert read_generation_info(exif(tmp_path, both)).arguments == READ


def test_comfyui_values_from_other_nodes(tmp_path: Path) -> None:
    info = drawn(
        tmp_path,
        n3={"seed": ["20", 0], "steps": ["21", 0]},
        n20={"class_type": "Seed (rgthree)", "seed": 5},
        n21={"class_type": "Reroute", "": ["22", 0]},
        n22={"class_type": "PrimitiveInt", "value": 30},
        n6={"text": ["23", 0]},
        n23={"class_type": "StringConstant", "string": "a cat"},
        n5={"width": ["24", 0]},
        n24={"class_type": "PrimitiveInt", "value": 512},
    )
    assert (info.arguments, info.notes) == (READ, ())


def test_comfyui_custom_sampling(tmp_path: Path) -> None:
    sampler = {
        "noise": ["30", 0],
        "guider": ["31", 0],
        "sampler": ["32", 0],
        "sigmas": ["33", 0],
        "latent_image": ["5", 0],
    }
    nodes = graph(
        n30={"class_type": "RandomNoise", "noise_seed": 5},
        n31={
            "class_type": "CFGGuider",
            "cfg": 6.5,
            "positive": ["6", 0],
            "negative": ["7", 0],
            "model": ["4", 0],
        },
        n32={"class_type": "KSamplerSelect", "sampler_name": "dpmpp_2m"},
        n33={"class_type": "KarrasScheduler", "steps": 30, "sigma_max": 14.6},
    )
    nodes["3"] = {"class_type": "SamplerCustomAdvanced", "inputs": sampler}
    info = read_generation_info(png(tmp_path, prompt=nodes))
    assert (info.arguments, info.model, info.notes) == (READ, "m", ())
    nodes["33"] = {
        "class_type": "BasicScheduler",
        "inputs": {"steps": 30, "scheduler": "karras", "denoise": 0.5, "model": ["4", 0]},
    }
    nodes["31"] = {"class_type": "BasicGuider", "inputs": {"conditioning": ["6", 0]}}
    nodes["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["34", 0], "vae": ["4", 2]}}
    nodes["34"] = {"class_type": "LoadImage", "inputs": {"image": "x.png"}}
    info = read_generation_info(png(tmp_path, prompt=nodes))
    assert (info.arguments["strength"], info.images) == (0.5, {"image": ""})
    assert "negative_prompt" not in info.arguments


def test_comfyui_loras_vae_and_layer(tmp_path: Path) -> None:
    info = drawn(
        tmp_path,
        n3={"model": ["40", 0]},
        n40={
            "class_type": "LoraLoader",
            "lora_name": "sub/x.v1.safetensors",
            "strength_model": 0.8,
            "strength_clip": 1,
            "model": ["4", 0],
            "clip": ["41", 0],
        },
        n41={"class_type": "CLIPSetLastLayer", "stop_at_clip_layer": -2, "clip": ["4", 1]},
        n8={"vae": ["42", 0]},
        n42={"class_type": "VAELoader", "vae_name": "ft-mse.pt"},
    )
    assert info.arguments == READ | {"clip_skip": 1}
    assert (info.vae, info.notes) == ("ft-mse", ("LoRA sub/x.v1 0.8",))


def test_comfyui_two_passes(tmp_path: Path) -> None:
    """The first pass is read, and the second is named."""
    second = graph()["3"]["inputs"] | {"denoise": 0.5, "seed": 99, "latent_image": ["50", 0]}
    info = drawn(
        tmp_path,
        n8={"samples": ["51", 0]},
        n50={"class_type": "LatentUpscale", "width": 999, "height": 999, "samples": ["3", 0]},
        n51={"class_type": "KSampler", **second},
    )
    assert (info.arguments, info.notes) == (READ, ("further samplers: 1",))


def test_comfyui_conditionings(tmp_path: Path) -> None:
    joined = {"conditioning_to": ["6", 0], "conditioning_from": ["60", 0]}
    info = drawn(
        tmp_path,
        n3={"positive": ["61", 0]},
        n60=text("a tree") | {"text": "a tree"},
        n61={"class_type": "ConditioningConcat", **joined},
    )
    assert (info.arguments["prompt"], info.notes) == ("a cat BREAK a tree", ())
    control = {"positive": ["6", 0], "negative": ["7", 0], "strength": 1, "image": ["70", 0]}
    info = drawn(
        tmp_path,
        n3={"positive": ["62", 0], "negative": ["62", 1]},
        n62={"class_type": "ControlNetApplyAdvanced", **control},
        n70={"class_type": "LoadImage", "image": "x.png"},
    )
    assert info.arguments == READ
    assert info.notes == (
        "nodes of the prompt: ControlNetApplyAdvanced",
        "nodes of the negative prompt: ControlNetApplyAdvanced",
    )
    info = drawn(
        tmp_path,
        n6={"class_type": "CLIPTextEncodeSDXL", "text_g": "a cat", "text_l": "a cat", "text": ""},
    )
    assert info.arguments["prompt"] == "a cat"
    mixed = {"conditioning_1": ["6", 0], "conditioning_2": ["60", 0]}
    with pytest.raises(ImageError, match="by ComfyUI, joins 2 prompts with ConditioningCombine"):
        drawn(
            tmp_path,
            n3={"positive": ["61", 0]},
            n60=text("a tree") | {"text": "a tree"},
            n61={"class_type": "ConditioningCombine", **mixed},
        )


def test_comfyui_loader_with_texts(tmp_path: Path) -> None:
    info = drawn(
        tmp_path,
        n3={"positive": ["80", 1], "negative": ["80", 2]},
        n80={
            "class_type": "Efficient Loader",
            "ckpt_name": "m.ckpt",
            "positive": "a cat",
            "negative": "dog",
        },
    )
    assert info.arguments == READ


@pytest.mark.parametrize(
    ("chunks", "message"),
    [
        ({"workflow": {"nodes": []}}, "only the layout of a graph by ComfyUI"),
        ({"prompt": {"1": {"class_type": "X", "inputs": {}}}}, "by ComfyUI, has no sampler .* X"),
        ({"prompt": '{"1": {"class_type": "X"'}, "by ComfyUI, is broken"),
        ({"parameters": '{"sui_image_params": {"prompt": "a'}, "by SwarmUI, is broken"),
        ({"parameters": '{"sui_image_params": 3}'}, "by SwarmUI, is no object"),
        ({"parameters": '{"metadata_scheme": "fooocus", "pr'}, "by Fooocus, is broken"),
        ({"invokeai_metadata": "[1]"}, "by InvokeAI, is a list"),
        ({"sd_dash_metadata": "{}"}, "by InvokeAI, has no image"),
        ({"invokeai_graph": '{"nodes": {}}'}, "only a graph by InvokeAI"),
        ({"parameters": "[" * 50_000}, "a program that is not known here, is broken"),
        ({"Dream": "a cat -s 30"}, "by InvokeAI, is 'a cat -s 30'"),
        ({"parameters": '{"a": [1], "b": {"c": 1}}'}, r"a program that is not known here \(a, b\)"),
        (
            {"Description": "a cat --v 5 Job ID: 12345678-1234-1234-1234-123456789abc"},
            "drawn by Midjourney",
        ),
    ],
)
def test_refused_by_name(tmp_path: Path, chunks: dict[str, Any], message: str) -> None:
    with pytest.raises(ImageError, match=message):
        read_generation_info(png(tmp_path, **chunks))


def test_the_web_uis_text_goes_first(tmp_path: Path) -> None:
    """Savers of ComfyUI write both."""
    own = "a fox\nSteps: 3, Sampler: Euler, CFG scale: 7, Seed: 1, Size: 8x8"
    info = read_generation_info(png(tmp_path, prompt=graph(), parameters=own))
    assert info.arguments["prompt"] == "a fox"
