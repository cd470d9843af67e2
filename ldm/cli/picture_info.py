"""What a picture's file says of how it was made, and the command that draws it again."""

from __future__ import annotations

import shlex
from itertools import zip_longest
from pathlib import Path
from typing import Any

from ldm.checkpoints.notes import Rows
from ldm.cli.controlnets import KINDS, control_option
from ldm.cli.fields import EVERYDAY
from ldm.cli.options import defaults
from ldm.cli.replay import AROUND, IN_ANOTHER_FORM, as_options
from ldm.config.files import open_regular
from ldm.config.picture_readers import T2I_ADAPTER
from ldm.errors import ImageError
from ldm.images.files import open_picture, read_texts
from ldm.images.generation_info import (
    BUILT_IN,
    OWN_CONTROLNET,
    GenerationInfo,
    read_generation_info,
    shifted,
)
from ldm.images.text_fields import OURS, settings_of

SIGNATURES = (b"\x89PNG\r\n", b"\xff\xd8\xff", b"GIF8", b"BM", b"II*\0", b"MM\0*", b"\0\0\1\0")
SHOWN = 2000  # characters of a text


def is_picture(path: Path) -> bool:
    """Whether a file begins as pictures do, whatever its name."""
    with open_regular(path) as file:
        start = file.read(16)
    brand = start[8:12]
    of_box = start[4:8] == b"ftyp" and brand in (b"avif", b"avis", b"heic", b"heix", b"mif1")
    return start.startswith(SIGNATURES) or (start[:4] == b"RIFF" and brand == b"WEBP") or of_box


def describe_picture(path: Path) -> Rows:
    """Describe a picture, row by row. Raises ImageError for one that is damaged."""
    texts = read_texts(path)  # reads all of it
    with open_picture(path) as image:
        size, kind = image.size, image.format
    rows: Rows = [("picture", f"{path}, {kind}, {size[0]}x{size[1]}")]
    try:
        info = read_generation_info(path)
    except ImageError as error:
        return [*rows, ("settings", str(error).removeprefix(f"{path}: "))]
    ours = settings_of(texts)
    rows.append(("drawn by", f"ldm {ours[OURS]}" if ours else "another program"))
    rows += setting_rows(info)
    if not info.batch_prompts:  # else one prompt alone is another picture
        rows.append(("again", command(info)))
    return rows + from_row(info, path)


def setting_rows(info: GenerationInfo) -> Rows:
    """Return a row for each setting."""
    named = {
        "model": info.model,
        "template": info.template,
        "VAE": info.vae,
        "text encoders": ", ".join(info.text_encoders),
        "embeddings": ", ".join(info.embeddings),
        "ControlNets": ", ".join(info.controlnets),
        "T2I-Adapters": ", ".join(info.t2i_adapters),
        "preprocessors": ", ".join(filter(None, info.preprocessors)),
        "IP-Adapters": ", ".join(info.ip_adapters),
        "images": ", ".join(info.images),
        "batch prompts": ", ".join(info.batch_prompts),
        "grid": info.grid,
        "not done here": ", ".join(info.notes),
    }
    settings = {name: value for name, value in changed(info).items() if value != ""}
    settings |= {name: value for name, value in named.items() if value}
    return [(name.replace("_", " "), text_of(value)) for name, value in settings.items()]


def changed(info: GenerationInfo) -> dict[str, Any]:
    """Return the settings that are not our defaults, the everyday ones first."""
    settings = shifted(info.arguments, 1) | info.loading  # as the options count
    first = ("prompt", "negative_prompt", *EVERYDAY)
    order = [*(name for name in first if name in settings), *settings]
    usual = defaults()
    return {
        name: settings[name]
        for name in dict.fromkeys(order)
        if name not in usual or settings[name] != usual[name]
    }


def text_of(value: object) -> str:
    """Return a value as a line, cut if it is long."""
    value = ", ".join(map(str, value)) if isinstance(value, tuple) else value
    text = " ".join(str(value).splitlines())
    return "".join(c if c.isprintable() else "�" for c in text[:SHOWN]) + "…" * (len(text) > SHOWN)


def command(info: GenerationInfo) -> str:
    """Return the command that draws the picture, with all settings as options."""
    settings = changed(info)
    prompt = str(settings.pop("prompt", ""))
    argv = ["ldm", "generate", f"--prompt={prompt}" if prompt.startswith("-") else prompt]
    if info.model not in (None, BUILT_IN):
        argv += ["--model", str(info.model)]
    if info.vae:
        argv += ["--vae", info.vae]
    for name in info.embeddings:
        argv += ["--embedding", name]
    for name in info.text_encoders:
        argv += ["--text-encoder", name]
    for name, label in zip_longest(info.controlnets, info.preprocessors):
        argv += [] if name in (None, OWN_CONTROLNET) else ["--controlnet", name]
        argv += control_option(label or "").split(" ")
    for name in info.t2i_adapters:
        argv += [T2I_ADAPTER.flag, name, T2I_ADAPTER.image_flag, "FILE"]
    for name in info.ip_adapters:
        argv += ["--ip-adapter", name]
    for name in info.images:
        if name not in {kind.image for kind in KINDS}:
            argv += [f"--{name.replace('_', '-')}", "FILE"]
    for name, value in settings.items():
        if name in defaults() and name not in AROUND | IN_ANOTHER_FORM:
            argv += as_options(name, value)
    return shlex.join(argv)


def from_row(info: GenerationInfo, path: Path) -> Rows:
    """Return the row of the shorter command, which draws as exactly as the file allows."""
    argv = ["ldm", "generate", "--from", str(path)]
    if info.model not in (None, BUILT_IN):
        argv += ["--model", str(info.model)]
    return [("or", shlex.join(argv))]
