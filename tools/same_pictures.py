"""Whether a change of the code changes what it computes: the check of any refactoring.

    python -m tools.same_pictures record FOLDER     # with the old code
    python -m tools.same_pictures check FOLDER      # with the new: exit code 1 if anything differs

``record`` makes small random models of every family, draws pictures with them, trains a few steps
and converts files, by the commands and the public Python names alone, and notes a SHA-256 of each
picture's pixels and metadata, of each tensor and of each text. ``check`` runs the same cases on the
same models and compares. Results depend on the processor and on PyTorch's version: check on the
machine where you recorded. FOLDER/recorded holds the files, to be looked at; ``check`` keeps its
own in a new FOLDER/checked-… if any differs, so that several can run at once.

A case is a function of this file with ``@case``; what it returns or leaves in its folder is
compared. ``--only PART`` runs the cases with PART in the name.
"""

from __future__ import annotations

import os

# Before PyTorch loads: one thread, and products that do not depend on where in memory weights lie.
os.environ["OMP_NUM_THREADS"] = "1"
os.environ["MKL_NUM_THREADS"] = "1"
os.environ["MKL_CBWR"] = "AUTO,STRICT"
os.environ["HF_HUB_OFFLINE"] = "1"

import argparse
import contextlib
import hashlib
import io
import json
import math
import re
import shutil
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ldm import AutoencoderKL, CLIPTextEncoder, DDPMScheduler, Pipeline, UNet
from ldm.cli import convert, generate, info
from ldm.cli import train as training
from ldm.config import CLIPTextConfig, SchedulerConfig, UNetConfig, VAEConfig

ROOT = Path(__file__).resolve().parents[1]
CASES: dict[str, Callable[[Path], Any]] = {}
RUNS = ("metrics.jsonl", "state.json")  # files of training that also tell the time
CLOCK = ("seconds", "per_second", "memory", "speed")


def case(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
    """Add a case under the function's name; it is given the folder of models and files."""
    CASES[function.__name__] = function
    return function


# Models


def randomize(module: nn.Module, seed: int) -> None:
    """Draw weights by their names, so that the order of the modules does not matter."""
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            digest = hashlib.sha256(f"{seed} {name}".encode()).digest()
            generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))
            if parameter.ndim > 1:
                bound = math.sqrt(3 / parameter[0].numel())
                parameter.uniform_(-bound, bound, generator=generator)
            else:
                middle = 1 if name.endswith("weight") else 0
                parameter.uniform_(middle - 0.2, middle + 0.2, generator=generator)


BLOCKS = {
    "sample_size": 8,
    "block_out_channels": (32, 64),
    "layers_per_block": 1,
    "norm_num_groups": 8,
}
TEXT_UNET = BLOCKS | {
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
    "attention_head_dim": 4,
    "cross_attention_dim": 32,
}
XL_UNET = TEXT_UNET | {
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": (2, 4),
    "transformer_layers_per_block": (1, 2),
    "use_linear_projection": True,
    "cross_attention_dim": 32 + 48,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 24 + 6 * 8,
}
PIXEL_UNET = BLOCKS | {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
    "attention_head_dim": 8,
    "cross_attention_dim": None,
    "sample_size": 16,
}
NOISE = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "steps_offset": 1,
    "clip_sample": False,
}


def vae(**changes: Any) -> AutoencoderKL:
    """Build a small VAE with random weights."""
    settings: dict[str, Any] = {"sample_size": 64, "block_out_channels": (16, 16, 32, 32)}
    settings |= {"layers_per_block": 1, "norm_num_groups": 8}
    made = AutoencoderKL(VAEConfig(**(settings | changes)))
    randomize(made, 1)
    return made


def text(width: int = 32, projected: bool = False, **changes: Any) -> CLIPTextEncoder:
    """Build a small text encoder with random weights."""
    if projected:
        changes["architectures"] = ("CLIPTextModelWithProjection",)
    sizes = {"hidden_size": width, "intermediate_size": 64, "projection_dim": 24}
    layers = {"num_hidden_layers": 3, "num_attention_heads": 4}
    made = CLIPTextEncoder(CLIPTextConfig(**(sizes | layers | changes)))
    randomize(made, width)
    return made


def unet(settings: dict[str, Any], **changes: Any) -> UNet:
    """Build a small U-Net with random weights."""
    made = UNet(UNetConfig(**(settings | changes)))
    randomize(made, 3)
    return made


def noise(sampler: str, **changes: Any) -> DDPMScheduler:
    """Stable Diffusion's noise schedule, drawn by one of diffusers' classes."""
    return DDPMScheduler(SchedulerConfig(**({"sampler_class": sampler} | NOISE | changes)))


def build_models(folder: Path) -> None:
    """Save a small random model of each family."""
    words = Pipeline.from_pretrained(device="cpu", dtype="float32").tokenizer
    two = {"text_encoder_2": text(48, True, hidden_act="gelu"), "tokenizer_2": words}
    ddim = noise("DDIMScheduler", set_alpha_to_one=False)
    velocity = noise("DDIMScheduler", set_alpha_to_one=False, prediction_type="v_prediction")
    euler = noise("EulerDiscreteScheduler", timestep_spacing="leading")
    trailing = noise("EulerAncestralDiscreteScheduler", timestep_spacing="trailing")
    xl_vae = vae(scaling_factor=0.13025)
    heads = {"use_linear_projection": True, "attention_head_dim": (2, 4)}
    sd2_unet = unet(TEXT_UNET, **heads, layers_per_block=2)
    refiner = unet(
        XL_UNET, cross_attention_dim=48, projection_class_embeddings_input_dim=24 + 5 * 8
    )
    learned = SchedulerConfig(
        sampler_class="DDPMScheduler",
        num_train_timesteps=50,
        beta_schedule="squaredcos_cap_v2",
        variance_type="learned_range",
        timestep_spacing="trailing",
    )
    names = {str(number): name for number, name in enumerate(("top", "left", "middle"))}
    made = {
        "sd1": Pipeline(vae(), text(), words, unet(TEXT_UNET), ddim),
        "sd2": Pipeline(vae(), text(hidden_act="gelu"), words, sd2_unet, velocity),
        "turbo": Pipeline(vae(), text(), words, unet(TEXT_UNET), trailing),
        "lcm": Pipeline(
            vae(), text(), words, unet(TEXT_UNET, time_cond_proj_dim=16), noise("LCMScheduler")
        ),
        "inpaint": Pipeline(vae(), text(), words, unet(TEXT_UNET, in_channels=9), ddim),
        "sdxl": Pipeline(xl_vae, text(), words, unet(XL_UNET), euler, **two),
        "refiner": Pipeline(xl_vae, None, None, refiner, euler, **two),
        "pixels": Pipeline(None, None, None, unet(PIXEL_UNET), DDPMScheduler(SchedulerConfig())),
        "classes": Pipeline(
            None,
            None,
            None,
            unet(PIXEL_UNET, out_channels=6, num_class_embeds=4),
            DDPMScheduler(learned),
            id2label=names,
        ),
    }
    for name, pipe in made.items():
        pipe.save_pretrained(folder / name)


# Files


def drawing(seed: int, height: int = 48, width: int = 64) -> Image.Image:
    """Make a slope with noise: every pixel is of its own."""
    generator = np.random.default_rng(seed)
    slope = np.linspace(0, 150, width)[None, :, None]
    values = slope + generator.integers(0, 100, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def layers() -> dict[str, tuple[int, int]]:
    """Linear layers of the sd1 model that LoRAs change, with their (outputs, inputs)."""
    block = "unet.down_blocks.0.attentions.0.transformer_blocks.0"
    found = {
        f"{block}.attn1.to_q": (32, 32),
        f"{block}.attn2.to_k": (32, 32),
        f"{block}.attn2.to_v": (32, 32),
        f"{block}.ff.net.2": (32, 128),
    }
    encoder = "text_encoder.text_model.encoder.layers.1.self_attn"
    return found | {f"{encoder}.q_proj": (32, 32), f"{encoder}.out_proj": (32, 32)}


def build_loras(folder: Path) -> None:
    """Write one LoRA in the names of kohya, peft and diffusers, and one as a DoRA."""
    forms: dict[str, dict[str, Tensor]] = {"kohya": {}, "peft": {}, "diffusers": {}, "dora": {}}
    generator = torch.Generator().manual_seed(4)
    for path, (outputs, inputs) in layers().items():
        down = torch.randn(4, inputs, generator=generator) / 4
        up = torch.randn(outputs, 4, generator=generator) / 4
        name = "lora_" + path.replace("text_encoder", "te", 1).replace(".", "_")
        kohya = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up}
        kohya[f"{name}.alpha"] = torch.tensor(2.0)
        forms["kohya"] |= kohya
        forms["peft"] |= {f"{path}.lora_A.weight": down, f"{path}.lora_B.weight": up}
        forms["diffusers"] |= {f"{path}.lora.down.weight": down, f"{path}.lora.up.weight": up}
        scale = torch.rand(outputs, 1, generator=generator) + 0.5
        forms["dora"] |= kohya | {f"{name}.dora_scale": scale}
    for form, tensors in forms.items():
        save_file(
            {name: each.contiguous() for name, each in tensors.items()},
            folder / f"{form}.safetensors",
        )
    vectors = torch.randn(3, 32, generator=generator)
    save_file({"<toy>": vectors}, folder / "learned.safetensors")
    content = {"string_to_token": {"*": 265}, "string_to_param": {"*": vectors + 1}}
    torch.save(content | {"name": "thing", "step": 1}, folder / "thing.pt")


def build_data(folder: Path) -> None:
    """Write captioned pictures, pictures by class, and texts with embeddings."""
    generator = np.random.default_rng(5)
    captioned = folder / "captioned"
    captioned.mkdir(parents=True)
    rows = []
    for index in range(24):
        drawing(100 + index, 40, 40).save(captioned / f"{index}.png")
        rows.append({"file_name": f"{index}.png", "text": f"a picture of number {index}"})
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    (captioned / "metadata.jsonl").write_text(lines)
    for label, name in enumerate(("top", "left", "middle")):
        (folder / "classes" / name).mkdir(parents=True)
        for index in range(12):
            pixels = generator.integers(0, 60, (16, 16, 3))
            pixels[(slice(0, 8), slice(None), slice(4, 12))[label]] += 150
            picture = Image.fromarray(pixels.astype(np.uint8))
            picture.save(folder / "classes" / name / f"{index}.png")
    texts = folder / "texts"
    texts.mkdir()
    things = [f"a {c} {n}" for c in ("red", "blue", "green") for n in ("car", "cat", "tree", "cup")]
    words = things + [f"{one} and {two}" for one in things for two in things]
    embeddings = generator.standard_normal((len(words), 8))
    embeddings /= np.linalg.norm(embeddings, axis=1, keepdims=True)
    np.save(texts / "embeddings.npy", embeddings.astype(np.float16))
    (texts / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in words))


def build(folder: Path) -> None:
    """Make all models and files that the cases read."""
    folder.mkdir(parents=True)
    build_models(folder)
    build_loras(folder)
    build_data(folder / "data")
    drawing(0).save(folder / "image.png")
    drawing(1, 64, 64).save(folder / "square.png")
    values = np.zeros((48, 64), np.uint8)
    values[8:40, 16:44] = 255
    values[24:, 30:] = 128
    Image.fromarray(values).save(folder / "mask.png")


# Commands and calls


class Captured(io.TextIOWrapper):
    """Text and bytes written to a stream of Python's."""

    def __init__(self) -> None:
        super().__init__(io.BytesIO(), encoding="utf-8", write_through=True)

    def text(self) -> str:
        """All that was written."""
        return self.buffer.getvalue().decode()


def command(main: Callable[[list[str]], int], *arguments: object) -> str:
    """Run a command in this process; returns its exit code and stdout."""
    out, err = Captured(), Captured()
    torch.manual_seed(0)
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            code = main([str(argument) for argument in arguments])
        except SystemExit as stop:
            code = stop.code
    if code:
        raise RuntimeError(f"exit code {code}: {err.text().strip()[-2000:]}")
    return out.text()


def draw(model: Path | None, *arguments: object, steps: int = 2) -> str:
    """``ldm-generate`` with a seed and a few steps."""
    given = list(map(str, arguments))
    if model is not None:
        given += ["--model", str(model)]
    for name, value in (("--seed", 7), ("--steps", steps), ("--dtype", "float32")):
        if name not in given:
            given += [name, str(value)]
    return command(generate.main, *given)


def load(model: Path, **arguments: Any) -> Pipeline:
    """Load a model in float32 on the CPU."""
    return Pipeline.from_pretrained(model, device="cpu", dtype="float32", **arguments)


def follow(pipe: Pipeline, prompt: Any = "a red car", **arguments: Any) -> list[Any]:
    """Every step of a run: latents, x̂₀, and the pictures of the last."""
    arguments = {"seed": 3, "num_inference_steps": 3, "guidance_scale": 3.0} | arguments
    found: list[Any] = []
    for progress in pipe.stream(prompt, **arguments):
        found += [progress.latents.clone(), progress.x0.clone()]
    return [*found, progress.output.images, progress.output.seeds]


def train(config: dict[str, Any], **changes: Any) -> str:
    """``ldm-train`` with a config; the run's folder is what is compared."""
    values = {
        "output": "run",
        "steps": 3,
        "batch_size": 4,
        "learning_rate": 1e-3,
        "mixed_precision": "no",
        "log_every": 1,
        "ema_decay": 0.9,
        "sample_every": 3,
        "checkpoint_minutes": 1e9,
    }
    file = Path("config.toml")
    file.write_text(toml(values | config | changes), encoding="utf-8")
    lines = command(training.main, "--config", str(file), "--quiet")
    file.unlink()
    return lines


def toml(values: dict[str, Any], path: tuple[str, ...] = ()) -> str:
    """Write a TOML document of numbers, texts, lists and tables."""
    lines = [f"[{'.'.join(path)}]"] if path else []
    lines += [f"{k} = {inline(v)}" for k, v in values.items() if not isinstance(v, dict)]
    tables = [toml(v, (*path, k)) for k, v in values.items() if isinstance(v, dict)]
    return "\n".join([*lines, *tables]) + "\n"


def inline(value: Any) -> str:
    """Write a value within a line of TOML."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key} = {inline(each)}" for key, each in value.items()) + "}"
    if isinstance(value, list):
        return f"[{', '.join(map(inline, value))}]"
    return json.dumps(value)


# Cases: the built-in model and the families


@case
def built_in(files: Path) -> str:
    """Draw with the built-in model, as users first meet it."""
    return draw(None, "a red car", steps=3)


@case
def built_in_default_dtype(files: Path) -> str:
    """Draw with the number format and the speed that this processor gets."""
    return command(generate.main, "a red car", "--seed", "1", "--steps", "3")


@case
def family_sd1(files: Path) -> str:
    """Two texts, two pictures of each, in batches."""
    arguments = ("a red car", "a blue cat", "--num-images", "2", "--batch-size", "3")
    return draw(files / "sd1", *arguments)


@case
def family_sd2_velocity(files: Path) -> Any:
    """v-prediction and linear projections."""
    return follow(load(files / "sd2"), negative_prompt="blue")


@case
def family_turbo(files: Path) -> str:
    """One step without guidance, trailing."""
    return draw(files / "turbo", "a red car", "-g", 0, steps=1)


@case
def family_lcm(files: Path) -> Any:
    """Draw with a U-Net that reads the guidance scale; also over a picture."""
    pipe = load(files / "lcm")
    over = follow(pipe, image=files / "square.png", strength=0.5)
    return [follow(pipe), over]


@case
def family_inpainting(files: Path) -> Any:
    """Nine channels, at full strength and below."""
    pipe = load(files / "inpaint")
    given = {"image": files / "image.png", "mask_image": files / "mask.png"}
    return [follow(pipe, **given), follow(pipe, **given, strength=0.6, paste_back=False)]


@case
def family_sdxl(files: Path) -> Any:
    """Two text encoders, pooled text and sizes."""
    pipe = load(files / "sdxl")
    return [follow(pipe, width=80), follow(pipe, ["a (red:1.3) car", ""], negative_prompt="blue")]


@case
def family_refiner(files: Path) -> Any:
    """One text encoder, an aesthetic score."""
    return follow(load(files / "refiner"), image=files / "square.png", strength=0.7)


@case
def family_pixels(files: Path) -> str:
    """Draw with a model without a text."""
    return draw(files / "pixels", "--num-images", 2)


@case
def family_classes(files: Path) -> Any:
    """Draw with a model of classes and a learned variance, by name, number and none."""
    pipe = load(files / "classes")
    return [follow(pipe, ["left", "2", ""]), draw(files / "classes", "middle", "-g", 2)]


# Samplers and schedules

SAMPLERS = [
    "ddpm", "ddim", "pndm", "euler", "euler_a", "heun", "dpm2", "dpm2_a", "lms", "dpmpp_2m",
    "dpmpp_2m_sde", "dpmpp_3m_sde", "dpmpp_2s", "dpmpp_2s_a", "dpmpp_sde", "unipc", "deis", "lcm",
]  # fmt: skip
SCHEDULES = [
    "normal", "karras", "exponential", "sgm_uniform", "simple", "beta", "ays",
]  # fmt: skip


def sampler_case(name: str) -> Callable[[Path], Any]:
    """Every step of a sampler, from noise and over a picture, for ε and v."""

    def run(files: Path) -> Any:
        options = {"sampler": name, "num_inference_steps": 6}
        over = {"image": files / "square.png", "strength": 0.5}
        return [
            follow(load(files / "sd1"), **options),
            follow(load(files / "sd2"), **options),
            follow(load(files / "sd1"), **options, **over),
        ]

    return run


for each in SAMPLERS:
    CASES[f"sampler_{each}"] = sampler_case(each)


@case
def sampler_on_pixels(files: Path) -> Any:
    """Clipping, which only models of pixels do, and η."""
    pipe = load(files / "pixels")
    names = ("ddpm", "ddim", "euler", "pndm")
    runs = [follow(pipe, "", sampler=name, guidance_scale=1.0) for name in names]
    return [*runs, follow(pipe, "", sampler="ddim", eta=0.7, guidance_scale=1.0)]


@case
def schedules(files: Path) -> Any:
    """Levels of noise of each schedule with three samplers."""
    pipe = load(files / "sd1")
    found = []
    for sampler in ("euler", "dpmpp_2m", "heun"):
        for schedule in SCHEDULES:
            found.append(
                follow(pipe, sampler=sampler, schedule=schedule, num_inference_steps=4)[-4]
            )
    return found


@case
def schedules_by_name(files: Path) -> Any:
    """Use the names of A1111 and diffusers."""
    pipe = load(files / "sdxl")
    names = ("DPM++ 2M Karras", "dpmpp_2m_karras", "EulerAncestralDiscreteScheduler", "DPM++ SDE")
    return [str(pipe.choose_sampler(name)) for name in names] + [
        str(pipe.schedule(5, sampler=name)) for name in names
    ]


@case
def list_samplers(files: Path) -> str:
    """Return what --list-samplers prints."""
    return command(generate.main, "--list-samplers")


# Pictures to start from


@case
def image_to_image(files: Path) -> str:
    """Start from a picture."""
    return draw(files / "sd1", "a red car", "--image", files / "image.png", "--strength", 0.6)


@case
def image_to_image_nothing(files: Path) -> Any:
    """Strength 0 returns the picture."""
    return follow(load(files / "sd1"), image=files / "image.png", strength=0.0)


@case
def masks(files: Path) -> str:
    """Use a mask with a soft edge, pasted back."""
    given = ("--image", files / "image.png", "--mask", files / "mask.png")
    return draw(files / "sd1", "a red car", *given)


@case
def masks_without_paste(files: Path) -> Any:
    """Use a hard mask, below full strength, as the model leaves it."""
    given = {"image": files / "image.png", "mask_image": files / "mask.png", "mask_blur": 0.0}
    return follow(load(files / "sd1"), **given, strength=0.7, paste_back=False)


@case
def outpainting(files: Path) -> str:
    """Past the edges of a picture."""
    return draw(files / "sd1", "a red car", "-i", files / "image.png", "--outpaint", "16,0,8,24")


@case
def hires(files: Path) -> Any:
    """Two passes, by the command and in Python, with a text that changes in the second."""
    from ldm.hires import hires_fix

    *_, last = hires_fix(
        load(files / "sd1"),
        ["a [red:blue:1.5] car", "a cat"],
        hires_scale=1.5,
        seed=2,
        num_inference_steps=4,
    )
    drawn = draw(files / "sd1", "a car", "--hires-scale", 1.5, "--hires-strength", 0.6)
    return [last.latents, last.output.images, drawn]


@case
def tiling(files: Path) -> Any:
    """Draw a picture without a seam, also over a picture."""
    pipe = load(files / "sd1")
    over = follow(pipe, tiling=True, image=files / "square.png", strength=0.5)
    return [follow(pipe, tiling=True), over, draw(files / "sd1", "a wall", "--tiling")]


# Texts


@case
def text_weights(files: Path) -> Any:
    """Weights, brackets that are text, several texts with a negative one each."""
    prompts = ["a (red:1.4) car", "a ((red)) [car]", r"a \(red\) car"]
    return follow(load(files / "sd1"), prompts, negative_prompt=["(blue:0.7)", "", "green"])


@case
def text_and(files: Path) -> Any:
    """Several texts that are guided on their own."""
    return follow(load(files / "sd1"), ["a red car AND a green tree :0.8 AND sky :-0.3", "a cat"])


@case
def text_break(files: Path) -> Any:
    """Begin the next chunk."""
    return follow(load(files / "sd1"), "a red car BREAK on a (green:1.2) street")


@case
def text_editing(files: Path) -> Any:
    """Texts that change from step to step."""
    prompts = ["a [cat:dog:0.5]", "a [dog:2] [cat::0.4]", "a [cat|dog|bird]"]
    return follow(load(files / "sd1"), prompts, num_inference_steps=5)


@case
def text_long(files: Path) -> Any:
    """More than 75 tokens, with a comma near the border."""
    words = ", ".join(f"a {colour} car number {i}" for i, colour in enumerate(["red", "blue"] * 15))
    return [follow(load(files / "sd1"), words), follow(load(files / "sdxl"), words)]


@case
def text_clip_skip(files: Path) -> Any:
    """Use an earlier layer of the text encoder."""
    return [follow(load(files / name), clip_skip=1) for name in ("sd1", "sd2", "sdxl")]


# Guidance, noise and number formats


@case
def guidance_options(files: Path) -> Any:
    """Rescaling and an interval."""
    pipe = load(files / "sd1")
    found = [follow(pipe, guidance_rescale=0.7), follow(pipe, guidance_interval=(0.3, 5.0))]
    options = ("--guidance-rescale", 0.7, "--guidance-interval", "0.3,5")
    return [*found, follow(pipe, guidance_scale=1.0), draw(files / "sd1", "a red car", *options)]


@case
def variation_seeds(files: Path) -> str:
    """Go a part of the way to another seed's noise."""
    options = ("--variation-seed", 5, "--variation-strength", 0.3, "--num-images", 2)
    return draw(files / "sd1", "a red car", *options)


@case
def generators_and_latents(files: Path) -> Any:
    """Noise that is given, and a generator in place of a seed."""
    pipe = load(files / "sd1")
    given = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    drawn = follow(pipe, seed=None, generator=torch.Generator().manual_seed(1), output_type="pt")
    return [follow(pipe, latents=given, output_type="latent"), drawn]


@case
def deep_cache(files: Path) -> Any:
    """Coarse levels at every second step."""
    options = {"num_inference_steps": 5, "deep_cache": 2}
    two = load(files / "sd2")  # with two layers a level
    return [follow(load(files / "sd1"), **options), follow(two, **options, deep_cache_branch=1)]


@case
def fast(files: Path) -> str:
    """--fast, which is several options."""
    return draw(files / "sd1", "a red car", "--fast", steps=4)


@case
def int8(files: Path) -> Any:
    """8-bit integers."""
    return follow(load(files / "sd1", int8=True))


@case
def optimize(files: Path) -> Any:
    """Packed weights, and unpacked again; the whole state is as before."""
    pipe = load(files / "sd1")
    on = follow(pipe.optimize())
    state = pipe.unet.state_dict()
    return [on, state, follow(pipe.optimize(False)), draw(files / "sd1", "a car", "--no-optimize")]


@case
def bfloat16(files: Path) -> Any:
    """Half precision on a CPU."""
    pipe = Pipeline.from_pretrained(files / "sdxl", device="cpu", dtype="bfloat16")
    return [follow(pipe), follow(pipe.optimize())]


@case
def previews(files: Path) -> Any:
    """Rough colours of latents, and their decode."""
    built, small = Pipeline.from_pretrained(device="cpu", dtype="float32"), load(files / "sd1")
    latents = torch.randn(2, 8, 16, 16, generator=torch.Generator().manual_seed(2))
    found = [built.preview(latents), built.decode(latents)]
    return [*found, small.preview(latents[:, :4]), small.decode(latents[:, :4])]


# Adapters


def lora_case(form: str) -> Callable[[Path], Any]:
    """Load a LoRA file by the command, and in Python put it on and take it off."""

    def run(files: Path) -> Any:
        path = files / f"{form}.safetensors"
        pipe = load(files / "sd1")
        summary = pipe.load_lora_weights(path, scale=0.8).summary.replace(str(files), "FILES")
        on = follow(pipe)
        pipe.set_adapters(form, 0.3)
        less = follow(pipe)
        pipe.unload_lora_weights()
        drawn = draw(files / "sd1", "a red car", "--lora", f"{path}:0.5")
        return [summary, on, less, pipe.unet.state_dict(), drawn]

    return run


for each in ("kohya", "peft", "diffusers", "dora"):
    CASES[f"lora_{each}"] = lora_case(each)


@case
def lora_tags(files: Path) -> str:
    """Name a LoRA in the text, two of them at once."""
    texts = ("a red <lora:kohya:0.8> car", "a car <lora:peft:0.2> <lora:dora:0.5>")
    return draw(files / "sd1", *texts, "--lora-dir", files)


@case
def lora_merged(files: Path) -> str:
    """ldm-convert merges a LoRA."""
    return command(
        convert.main, files / "sd1", "merged", "--lora", f"{files / 'kohya.safetensors'}"
    )


@case
def textual_inversion(files: Path) -> Any:
    """Words from files of diffusers and A1111."""
    pipe = load(files / "sd1")
    words = [
        pipe.load_textual_inversion(files / name) for name in ("learned.safetensors", "thing.pt")
    ]
    drawn = draw(files / "sd1", "a <toy> car", "--embedding", files / "learned.safetensors")
    return [words, follow(pipe, f"a photo of {words[0]} in a {words[1]}-shaped box"), drawn]


# What the command leaves


@case
def plots(files: Path) -> str:
    """Plot two arguments, samplers, and a sheet without words."""
    axes = ("--x", "guidance_scale=1,4", "--y", "sampler=ddim,euler_a", "-o", "one.png")
    texts = ("--x", "prompt=red,blue", "--no-labels", "-o", "two.png")
    return draw(files / "sd1", "a red car", *axes) + draw(files / "sd1", "a red car", *texts)


@case
def grids(files: Path) -> str:
    """One picture with all of them, with words."""
    return draw(files / "sd1", "a car", "a cat", "--num-images", 2, "--grid", "-o", "grid.png")


@case
def replay(files: Path) -> str:
    """--from with the same arguments, with another text, and of JPEG and WebP."""
    model = files / "sd1"
    first = draw(model, "a (red:1.2) car", "--sampler", "euler_a", "-g", 4, "-o", "first.png")
    again = ["--model", model, "--from", "first.png", "--dtype", "float32"]
    first += command(generate.main, *again, "-o", "again.png")
    first += command(generate.main, *again, "a blue cat", "-o", "other.webp")
    again[3] = "other.webp"
    return first + command(generate.main, *again, "-o", "third.jpg")


@case
def replay_with_everything(files: Path) -> str:
    """--from of a masked picture with a LoRA and variation, one of a batch."""
    given = ["--image", files / "image.png", "--mask", files / "mask.png", "--model", files / "sd1"]
    given += ["--lora-dir", files]
    options = ("--variation-seed", 2, "--variation-strength", 0.4, "--guidance-rescale", 0.5)
    first = draw(None, "a <lora:kohya:0.4> car", *given, *options, "--num-images", 2)
    second = first.splitlines()[1]
    return first + command(generate.main, *given, "--from", second, "-o", "again.png")


@case
def replay_of_a1111(files: Path) -> Any:
    """Replay the web UI's text, in Python and by the command."""
    from PIL.PngImagePlugin import PngInfo

    information = PngInfo()
    text = "a red car\nNegative prompt: blue\nSteps: 3, Sampler: DPM++ 2M, Schedule type: Karras, "
    text += "CFG scale: 5, Seed: 11, Size: 64x64, Clip skip: 2, RNG: CPU, Version: v1.10.0"
    information.add_text("parameters", text)
    drawing(3).save("webui.png", pnginfo=information)
    given = ("--model", files / "sd1", "--dtype", "float32")
    return command(generate.main, "--from", "webui.png", *given, "-o", "again.png")


@case
def steps_animation_words(files: Path) -> str:
    """--save-steps, --animation and --explain."""
    seen = ("--save-steps", "--explain", "--animation")
    drawn = draw(files / "sd1", "a red car", *seen, "webp", "-o", "one.png", steps=4)
    return drawn + draw(files / "sdxl", "a cat", *seen, "gif", "-o", "two.png", steps=3)


@case
def attention_maps(files: Path) -> Any:
    """Where words looked, in Python."""
    pipe = load(files / "sd1")
    with pipe.explain() as attention:
        drawn = follow(pipe, ["a red car", "a blue cat AND a dog"])
    return [drawn, [(word, heat) for word, heat in attention.words()]]


@case
def prompts_file(files: Path) -> str:
    """Draw a file of texts, and one of JSON lines with arguments."""
    Path("plain.txt").write_text("a red car\n\n# nothing\na (blue:1.3) cat\n", encoding="utf-8")
    lines = [
        {"prompt": "a red car", "num_inference_steps": 3, "guidance_scale": 2},
        {"prompt": "a cat", "image": str(files / "image.png"), "strength": 0.5, "tiling": True},
        {"prompt": "a dog", "negative_prompt": "blue", "sampler": "heun", "seed": 3},
    ]
    Path("lines.jsonl").write_text("\n".join(map(json.dumps, lines)), encoding="utf-8")
    plain = draw(files / "sd1", "--prompts", "plain.txt", "--num-images", 2, "-o", "plain/")
    return plain + draw(files / "sd1", "--prompts", "lines.jsonl", "-o", "lines/")


@case
def metadata(files: Path) -> Any:
    """Record the metadata of each format, with characters of all kinds."""
    found = ""
    for name in ("one.png", "two.jpg", "three.webp"):
        found += draw(files / "sd1", 'a "red" car, é: 猫\nSteps: 7', "-n", "blue", "-o", name)
    return found


# Files of models


@case
def convert_folder(files: Path) -> str:
    """Convert a folder to a folder, in half precision; every family."""
    found = ""
    for name in ("sd1", "sd2", "inpaint", "sdxl", "refiner", "lcm", "classes"):
        found += command(convert.main, files / name, name, "--dtype", "float16")
    return found


@case
def convert_built_in(files: Path) -> str:
    """Copy the built-in model into a folder."""
    return command(convert.main, ROOT / "weights", "copy", "--dtype", "bfloat16")


@case
def inform(files: Path) -> str:
    """ldm-info of folders, LoRAs and embeddings."""
    names = ("sd1", "sdxl", "classes", "kohya.safetensors", "peft.safetensors", "thing.pt")
    return "".join(command(info.main, files / name) for name in names)


@case
def another_vae(files: Path) -> str:
    """--vae with a part of another model."""
    return draw(files / "sd1", "a red car", "--vae", files / "sdxl" / "vae")


@case
def help_texts(files: Path) -> list[str]:
    """List the names of all options."""
    found = []
    for main in (generate.main, training.main, convert.main, info.main):
        words = command(main, "--help").replace("[", " ").replace("]", " ").split()
        found.append(" ".join(sorted({word.strip(",|") for word in words if word[:2] == "--"})))
    return found


@case
def exit_codes(files: Path) -> list[list[Any]]:
    """Record what is refused, and how: the texts of the errors may change, their kinds not."""
    model = ("--model", files / "sd1", "--steps", 1)
    wrong: list[tuple[object, ...]] = [
        ("a car", "--sampler", "no_such"),
        ("a car", "--steps", 0),
        ("a car", "--strength", 0.5),
        ("a car", "--image", "missing.png"),
        ("a car", "--width", 65),
        ("a (((car", "--eta", 2),
        ("a car", "--guidance-rescale", 2),
        ("a car", "--x", "no_such=1,2"),
        ("a car", "--hires-scale", 9),
        ("a car", "--deep-cache", 0),
        ("a car", "--lora", "missing.safetensors"),
        ("a car", "--embedding", files / "kohya.safetensors"),
        ("a car", "--mask", files / "mask.png"),
        ("--from", files / "image.png"),
        ("--prompts", "missing.txt"),
    ]
    found = []
    for arguments in wrong:
        try:
            command(generate.main, *model, *arguments, "-o", "never.png")
        except RuntimeError as error:
            found.append([" ".join(map(str, arguments)), str(error)[:11]])
    return found


# Training

SMALL_VAE = {
    "latent_channels": 4,
    "block_out_channels": [8, 16],
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "sample_size": 16,
}
SMALL_UNET = {
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "layers_per_block": 1,
    "attention_head_dim": 8,
    "norm_num_groups": 4,
}
DIGITS_NOISE = {
    "num_train_timesteps": 20,
    "beta_schedule": "squaredcos_cap_v2",
    "variance_type": "learned_range",
    "timestep_spacing": "trailing",
}


@case
def train_autoencoder(files: Path) -> str:
    """Train a VAE, in two phases, with a discriminator."""
    options = {
        "kl_weight": 1e-4,
        "gradient_weight": 0.5,
        "adversarial_weight": 0.1,
        "phases": [{"until": 1.0, "size": 24, "batch_size": 4}],
    }
    return train(
        {"recipe": "autoencoder", "data": str(files / "data" / "captioned")},
        model=SMALL_VAE,
        options=options,
    )


@case
def train_text(files: Path) -> str:
    """Train a text encoder."""
    model = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    return train(
        {"recipe": "text", "data": str(files / "data" / "texts"), "batch_size": 16},
        model=model | {"num_attention_heads": 4},
        options={"temperature": 0.1, "max_tokens": 20, "held_out": 32},
    )


@case
def train_latent(files: Path) -> str:
    """Train a U-Net of latents, with the parts of the small sd1 model, and Muon."""
    parts = {"vae": str(files / "sd1" / "vae"), "text_encoder": str(files / "sd1" / "text_encoder")}
    config = {"recipe": "latent", "data": str(files / "data" / "captioned"), "optimizer": "muon"}
    model = {key: list(v) if isinstance(v, tuple) else v for key, v in TEXT_UNET.items()}
    options = parts | {
        "caption_dropout": 0.2,
        "prompts": ["a car", "a cat"],
        "defaults": {"num_inference_steps": 2, "guidance_scale": 2.0},
        "data": {"size": 32},
        "scheduler": {"beta_schedule": "scaled_linear", "prediction_type": "v_prediction"},
    }
    return train(config, model=model | {"sample_size": 4}, options=options)


def pixel_options(**changes: Any) -> dict[str, Any]:
    """Return what the runs on pixels have in common."""
    common = {
        "data": {"size": 16},
        "defaults": {"num_inference_steps": 3},
        "scheduler": {"num_train_timesteps": 20, "beta_end": 0.4, "timestep_spacing": "trailing"},
        "samples": 3,
        "held_out": 6,
        "bound_calls": 4,
    }
    return common | changes


@case
def train_pixel(files: Path) -> str:
    """Train a model of pixels without classes."""
    config = {"recipe": "pixel", "data": str(files / "data" / "classes"), "model": SMALL_UNET}
    return train(config, options=pixel_options())


@case
def train_classes_and_classifier(files: Path) -> Any:
    """Train a model of classes with a learned variance, its classifier, and draw with both."""
    options = pixel_options(classes=True, objective="hybrid", scheduler=DIGITS_NOISE)
    config = {"recipe": "pixel", "data": str(files / "data" / "classes"), "model": SMALL_UNET}
    train(config, options=options)
    judge = {"block_out_channels": [8, 16], "layers_per_block": 1, "norm_num_groups": 4}
    judge |= {"down_block_types": ["ResnetDownsampleBlock2D", "AttnDownBlock2D"]}
    judge |= {"attention_head_dim": 8, "attn_norm_num_groups": 4}
    train(
        {"recipe": "classifier", "data": str(files / "data" / "classes"), "model": judge},
        output="judge",
        options={"guides": "run", "data": {"size": 16}, "held_out": 6},
    )
    pipe = load(Path("run"))
    return [
        follow(pipe, ["left", "top"], classifier_scale=2.0, guidance_scale=1.0),
        draw(Path("run"), "left", "--classifier-scale", 3),
    ]


@case
def train_dry_run(files: Path) -> Any:
    """Return what --dry-run prints, except the machine's memory and disk."""
    config = ROOT / "configs" / "train" / "mnist.toml"
    arguments = ("--config", config, "--dry-run", "--set", f"data={files / 'data' / 'classes'}")
    options = ("--set", "options.data={size = 32}")
    return command(training.main, *arguments, *options).split("\n}")[0]


@case
def likelihood(files: Path) -> Any:
    """Estimate the variational bound, term by term, with a fixed and with a learned variance."""
    from ldm.likelihood import bound_estimate, bound_terms, quantise

    found = []
    for name in ("pixels", "classes"):
        pipe = load(files / name)
        x = quantise(torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1)) * 2 - 1)
        labels = torch.tensor([0, 2]) if name == "classes" else None

        def predict(x: Tensor, t: Tensor, pipe: Any = pipe, labels: Any = labels) -> Tensor:
            with torch.no_grad():
                return pipe.unet(x, t, class_labels=labels)

        generator = torch.Generator().manual_seed(2)
        given = (pipe.scheduler, predict, x, generator)
        found.append(bound_estimate(*given, 4, pipe.scheduler.clip))
        if name == "classes":  # fifty steps, not a thousand
            found.append(bound_terms(*given, pipe.scheduler.clip))
    return found


@case
def scheduler(files: Path) -> Any:
    """Noise, targets and posterior of each beta schedule and each thing to predict."""
    generator = torch.Generator().manual_seed(1)
    x0, eps = torch.randn(2, 3, 4, 4, 4, generator=generator)
    t = torch.tensor([0, 500, 999])
    found: list[Any] = []
    for betas in ("linear", "scaled_linear", "squaredcos_cap_v2"):
        for kind in ("epsilon", "sample", "v_prediction"):
            for zero in (False, True):
                config = SchedulerConfig(
                    beta_schedule=betas, prediction_type=kind, rescale_betas_zero_snr=zero
                )
                made = DDPMScheduler(config)
                found += [made.add_noise(x0, eps, t), [str(made.level(i)) for i in (0, 500, 999)]]
    return found


# What is compared


def sha(content: bytes) -> str:
    """Return a SHA-256, long enough to distinguish."""
    return hashlib.sha256(content).hexdigest()[:32]


def of_tensor(tensor: Tensor) -> str:
    """Shape, type and a digest of a tensor's bytes."""
    tensor = tensor.detach().cpu().contiguous()
    content = tensor.reshape(-1).view(torch.uint8).numpy().tobytes()
    return f"{tensor.dtype} {list(tensor.shape)} {sha(content)}"


def of_picture(image: Image.Image) -> str:
    """Mode, size and a digest of all frames' pixels."""
    frames = [image.convert("RGBA").tobytes()]
    for index in range(1, getattr(image, "n_frames", 1)):
        image.seek(index)
        frames.append(image.convert("RGBA").tobytes())
    return f"{image.mode} {image.size} {len(frames)} {sha(b''.join(frames))}"


def of_value(value: Any, clean: Callable[[str], str]) -> Any:
    """Return a value of a case as JSON, with digests in place of tensors and pictures."""
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, Image.Image):
        return of_picture(value)
    if isinstance(value, dict):
        return {str(key): of_value(each, clean) for key, each in sorted(value.items())}
    if isinstance(value, list | tuple):
        return [of_value(each, clean) for each in value]
    if is_dataclass(value) and not isinstance(value, type):
        return of_value(asdict(value), clean)
    return clean(value) if isinstance(value, str) else value


def without_clock(text: str) -> str:
    """Return a run's JSON without the values that depend on the clock and the memory."""
    return re.sub(rf'"\w*({"|".join(CLOCK)})\w*": [\d.e+-]+', "", text)


def of_file(path: Path, clean: Callable[[str], str]) -> dict[str, Any]:
    """Return what a file holds, by the part that may differ: pixels and metadata, tensors, text."""
    suffix = path.suffix
    if suffix in (".png", ".jpg", ".webp", ".gif"):
        with Image.open(path) as image:
            texts = {key: str(each) for key, each in image.info.items() if isinstance(each, str)}
            texts |= {f"exif {key}": str(each) for key, each in image.getexif().items()}
            for key, each in image.getexif().get_ifd(0x8769).items():
                texts[f"exif {key}"] = repr(each)
            return {"pixels": of_picture(image), "metadata": of_value(texts, clean)}
    if suffix == ".safetensors":
        with safe_open(path, "pt") as file:
            header = file.metadata()
        return {"tensors": of_value(load_file(path), clean), "header": of_value(header, clean)}
    if suffix in (".json", ".jsonl", ".txt", ".toml"):
        content = path.read_text(encoding="utf-8")
        return {"text": clean(without_clock(content) if path.name in RUNS else content)}
    return {"there": True}  # optimizer states, curves and the like: what they are for is compared


def outcome(name: str, files: Path, folder: Path) -> dict[str, Any]:
    """Run a case in an empty folder; what it returned and what it left there."""

    def clean(text: str) -> str:
        text = text.replace(str(folder.resolve()), "HERE").replace(str(files.resolve()), "FILES")
        text = text.replace(str(ROOT), "ROOT")
        return text if len(text) < 2000 else f"{len(text)} characters, {sha(text.encode())}"

    folder.mkdir(parents=True)
    with inside(folder):
        torch.manual_seed(0)
        found: dict[str, Any] = {"value": of_value(CASES[name](files), clean)}
        for path in sorted(Path().rglob("*")):
            if path.is_file() and "curves" not in path.name:
                for part, value in of_file(path, clean).items():
                    found[f"{path.as_posix()}: {part}"] = value
    return found


@contextlib.contextmanager
def inside(folder: Path) -> Iterator[None]:
    """Make a folder the current one, as ``contextlib.chdir`` of Python 3.11 does."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


def differences(old: Any, new: Any, where: str = "") -> Iterator[str]:
    """Where two outcomes differ, a line each."""
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*old, *(key for key in new if key not in old)]:
            if key not in new or key not in old:
                yield f"{where}{key}: {'gone' if key in old else 'new'}"
            else:
                yield from differences(old[key], new[key], f"{where}{key} ")
    elif isinstance(old, list) and isinstance(new, list) and len(old) == len(new):
        for index, pair in enumerate(zip(old, new, strict=True)):
            yield from differences(*pair, f"{where}[{index}] ")
    elif old != new:
        yield f"{where}was {old!r:.300}, is {new!r:.300}"


def run(files: Path, folder: Path, only: str) -> dict[str, Any]:
    """Run the cases, each in a folder within ``folder``; name → outcome, or {"error": …}."""
    found = {}
    names = [name for name in CASES if only in name]
    for index, name in enumerate(names):
        began = time.monotonic()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                found[name] = outcome(name, files, folder / name)
        except Exception as error:
            traceback.print_exc()
            found[name] = {"error": f"{type(error).__name__}: {error}"}
        seconds = time.monotonic() - began
        print(f"{index + 1:3}/{len(names)} {seconds:5.1f} s  {name}", file=sys.stderr, flush=True)
    return found


def record(folder: Path, only: str) -> int:
    """Make the models and note what the code computes. Returns the exit code."""
    if not (folder / "files").exists():
        build(folder / "files")
    recorded = folder / "recorded"
    for name in CASES:
        if only in name and (recorded / name).exists():
            shutil.rmtree(recorded / name)
    found = run(folder / "files", recorded, only)
    outcomes = folder / "outcomes.json"
    if only and outcomes.exists():
        found = json.loads(outcomes.read_text(encoding="utf-8")) | found
    outcomes.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    failed = [name for name, each in found.items() if "error" in each]
    print(
        f"{len(found)} cases recorded in {outcomes}",
        *(f"failed: {name}" for name in failed),
        sep="\n",
    )
    return int(bool(failed))


def check(folder: Path, only: str) -> int:
    """Compare with what was recorded. Returns the exit code: 1 if anything differs."""
    old = json.loads((folder / "outcomes.json").read_text(encoding="utf-8"))
    # Through JSON, as the recorded ones went.
    checked = Path(tempfile.mkdtemp(prefix="checked-", dir=folder))
    new = json.loads(json.dumps(run(folder / "files", checked, only)))
    wrong = 0
    for name in [name for name in old if only in name] + [name for name in new if name not in old]:
        lines = list(differences(old.get(name, {}), new.get(name, {})))
        wrong += bool(lines)
        for line in lines[:8]:
            print(f"{name}: {line}")
        if len(lines) > 8:
            print(f"{name}: and {len(lines) - 8} differences more")
    if wrong:
        print(f"{len(new)} cases, {wrong} differ; their files are in {checked}")
    else:
        shutil.rmtree(checked)
        print(f"{len(new)} cases, all equal")
    return int(bool(wrong))


def main() -> int:
    """Entry point; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("action", choices=("record", "check"))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="", metavar="PART", help="cases with PART in the name")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    folder = arguments.folder.expanduser().resolve()
    code = (record if arguments.action == "record" else check)(folder, arguments.only)
    print(f"{time.monotonic() - began:.0f} s", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
