"""InvokeAI: the chunk `invokeai_metadata` (JSON), before that `sd-metadata` (JSON) or `Dream`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ldm.images.programs.json_settings import labelled, load, lora, name_of, scalar

NAME = "InvokeAI"
READ = (
    *("positive_prompt", "negative_prompt", "width", "height", "seed", "cfg_scale", "steps"),
    *("scheduler", "sampler", "rand_device"),
)
# What changes the picture and is not done here, or not from these settings.
CHANGES = (
    *("controlnets", "ipAdapters", "t2iAdapters", "control_layers", "ref_images", "hrf_enabled"),
    *("refiner_model", "positive_style_prompt", "negative_style_prompt", "seamless", "seamless_x"),
    *("seamless_y", "cfg_rescale_multiplier", "threshold", "perlin", "hires_fix", "variations"),
    "postprocessing",
)
# The options of its first command line → A1111's names.
OPTIONS = {
    "s": "Steps",
    "S": "Seed",
    "C": "CFG scale",
    "A": "Sampler",
    "W": "Width",
    "H": "Height",
    "f": "Denoising strength",
}
DREAM = re.compile(r'\s*"(?P<prompt>.*)"(?P<options>[^"]*)', re.DOTALL)
OPTION = re.compile(r"(?:^|\s)-(\w) ?(\S+)")
NEGATIVE = re.compile(r"\[([^][]*)\]")
PLUS = re.compile(r"[\w)\]]([+]+|-{2,})(?=[\s,.)]|$)")  # its weights: word+, (a word)--


def read(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read the settings in the texts of a file; None if InvokeAI wrote none."""
    if (text := fields.get("invokeai_metadata")) is not None:
        found = _metadata(load(text, NAME))
    elif (text := fields.get("sd-metadata")) is not None:
        found = _image(load(text, NAME))
    elif (text := fields.get("Dream")) is not None:
        found = _dream(text)
    elif "invokeai_graph" in fields or "invokeai_workflow" in fields:
        raise ValueError(f"it has only a graph by {NAME}, which cannot be read")
    else:
        return None
    if PLUS.search(found.get("Prompt", "")) or PLUS.search(found.get("Negative prompt", "")):
        found["weights of words"] = "as word+"
    return found


def _metadata(settings: dict[str, Any]) -> dict[str, str]:
    found = _read(settings)
    if model := name_of(settings.get("model")):
        found["Model"] = model
    if vae := name_of(settings.get("vae")):
        found["VAE"] = vae
    if isinstance(skip := settings.get("clip_skip"), int):  # which counts from 0
        found["Clip skip"] = str(skip + 1) if abs(skip) < 100 else "too large"
    mode = settings.get("generation_mode")
    if isinstance(mode, str) and mode.endswith(("img2img", "inpaint", "outpaint")):
        found["Denoising strength"] = scalar(settings.get("strength")) or "0.75"
    loras = settings.get("loras")
    for row in loras if isinstance(loras, list) else []:
        if isinstance(row, Mapping):
            name = name_of(row.get("lora")) or name_of(row.get("model"))
            found |= lora(name, row.get("weight"))
    return found


def _image(settings: dict[str, Any]) -> dict[str, str]:
    image = settings.get("image")
    if not isinstance(image, dict):
        raise ValueError(f"its sd-metadata, by {NAME}, has no image")
    prompts = image.get("prompt")
    if isinstance(prompts, list):
        texts = [row.get("prompt") for row in prompts if isinstance(row, Mapping)]
        if len(texts) != 1:
            raise ValueError(f"it was drawn by {NAME} from {len(texts)} prompts; one can be read")
        prompts = texts[0]
    found = _read(image) | _split(str(prompts or ""))
    if model := name_of(settings.get("model_weights")):
        found["Model"] = model
    if image.get("type") == "img2img":
        found["Denoising strength"] = scalar(image.get("strength")) or "0.75"
    return found


def _dream(text: str) -> dict[str, str]:
    match = DREAM.fullmatch(text)
    if match is None:
        raise ValueError(f"its Dream, by {NAME}, is {text[:60]!r}; expected a prompt in quotes")
    found = _split(match["prompt"])
    for option, value in OPTION.findall(match["options"]):
        if option in OPTIONS:
            found[OPTIONS[option]] = value
    return found


def _read(settings: dict[str, Any]) -> dict[str, str]:
    known = {key: value for key, value in settings.items() if key in READ or key in CHANGES}
    if "scheduler" in known:  # its name for a sampler
        known["sampler"] = known.pop("scheduler")
    return labelled(known)


def _split(text: str) -> dict[str, str]:
    """Split a prompt that has the negative one in square brackets."""
    negative = ", ".join(part.strip() for part in NEGATIVE.findall(text))
    found = {"Prompt": NEGATIVE.sub("", text).strip()}
    return found | ({"Negative prompt": negative} if negative else {})
