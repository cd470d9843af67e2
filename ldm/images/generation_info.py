"""The settings in a picture's file, as written by ldm or by A1111's web UI.

info = read_generation_info("car.png")
pipe = Pipeline.from_pretrained(**info.loading)  # and info.model, if it names one
pipe(**info.arguments).images[0]  # the same picture
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, ImageError
from ldm.images import metadata, read_parameters, read_settings
from ldm.request import Request, about
from ldm.samplers import SAMPLERS
from ldm.samplers.names import find_sampler, find_schedule

BUILT_IN = "ldm built-in"  # the model's name in a file
LARGEST_BATCH = 1024
# Settings of the web UI that name a thing, but do not change the picture.
WITHOUT_EFFECT = re.compile(
    r"(Model|VAE|Lora|TI|Hypernet)? ?[Hh]ash(es)?|Version|User|Batch (size|pos)|Model|VAE|RNG|Size|"
    r"Sampler|Schedule type|Denoising strength|Grid|[XYZ] (Type|Values)"
)
PLOT = "X/Y/Z plot"  # the web UI's script that draws a grid
NONE = ("", "Automatic", "None")


@dataclass(frozen=True)
class GenerationInfo:
    """How a picture was made.

    Attributes:
        arguments: those of ``Pipeline.stream``. The prompt has the ``<lora:name:scale>`` tags that
            ``ldm-generate`` takes out and loads.
        loading: those of ``Pipeline.from_pretrained``, without the paths.
        model, vae, embeddings: names of files ("ldm built-in" for that model); None if unknown.
        images: argument → digest (see ``images.digest``; "": not known) of each picture that was
            given; it is not in the file and must be given again.
        batch: (size, index): how many pictures were drawn at once, and which of them this is. The
            processor rounds differently for other sizes: bit-identical pictures need the same one.
        notes: settings in the file that are not supported here, by name.
        grid: what the file shows if it holds several pictures; the first one is described here.
    """

    arguments: dict[str, Any]
    loading: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    vae: str | None = None
    embeddings: tuple[str, ...] = ()
    text_encoders: tuple[str, ...] = ()  # names of files, that took the place of the model's
    images: dict[str, str] = field(default_factory=dict)
    batch: tuple[int, int] = (1, 0)
    notes: tuple[str, ...] = ()
    grid: str | None = None

    def settings(self, version: str, drawn: Mapping[str, str]) -> dict[str, Any]:
        """Return what ``images.save_image`` writes; ``drawn`` describes the machine."""
        found = {name: value for name, value in vars(self).items() if value and name != "notes"}
        return {metadata.OURS: version} | found | {"drawn": dict(drawn)}


def read_generation_info(path: str | Path) -> GenerationInfo:
    """Read the settings in a PNG, JPEG or WebP file: our own, else the web UI's text.

    Raises ImageError for a file without, and for values of a wrong type.
    """
    try:
        settings = read_settings(path)
        if settings is not None:
            return from_settings(settings)
        text = read_parameters(path)
        if text is None:
            raise ValueError(
                "it does not say how it was made; only what ldm-generate or A1111's web UI wrote, "
                "and no other program has changed, does"
            )
        return from_text(text)
    except ValueError as error:
        raise ImageError(f"{path}: {error}") from None


def from_settings(settings: Mapping[str, Any]) -> GenerationInfo:
    """Convert our own settings. Raises ValueError for a value of a wrong type."""

    def get(name: str, kind: type, default: Any) -> Any:
        value = settings.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise ValueError(f"its setting {name} is {value!r:.60}; expected a {kind.__name__}")
        return value

    batch = get("batch", list, [1, 0])
    seed = get("arguments", dict, {}).get("seed", 0)
    if [type(n) for n in (*batch, seed)] != [int] * 3 or not (
        0 <= batch[1] < batch[0] <= LARGEST_BATCH and seed >= batch[1]
    ):
        raise ValueError(f"its setting batch is {batch!r:.60} with the seed {seed!r:.60}")
    for part in ("arguments", "loading"):
        for name, value in get(part, dict, {}).items():
            if not isinstance(value, str | int | float):
                raise ValueError(f"its setting {name} is {value!r:.60}; expected a text or number")
    arguments = dict(get("arguments", dict, {}))
    if "guidance_interval" in arguments:
        arguments["guidance_interval"] = _pair(arguments["guidance_interval"])
    return GenerationInfo(
        arguments=arguments,
        loading=get("loading", dict, {}),
        model=get("model", str, None),
        vae=get("vae", str, None),
        embeddings=tuple(map(str, get("embeddings", list, []))),
        text_encoders=tuple(map(str, get("text_encoders", list, []))),
        images={name: str(digest) for name, digest in get("images", dict, {}).items()},
        batch=tuple(batch),
        grid=get("grid", str, None),
    )


def from_text(text: str) -> GenerationInfo:
    """Read the web UI's text. Raises ValueError for a value that is not a number."""
    settings = metadata.parse_parameters(text)
    arguments: dict[str, Any] = {"prompt": settings.pop(metadata.PROMPT)}
    if negative := settings.pop(metadata.NEGATIVE):
        arguments["negative_prompt"] = negative
    for label, (name, convert) in NUMBERS.items():
        if label in settings:
            arguments[name] = _number(label, settings.pop(label), convert)
    arguments |= _size(settings)
    strength, notes = _strength(settings)
    sampler, unknown = _sampler(settings)
    arguments |= strength | sampler
    notes += unknown
    eta = arguments.get("eta")
    if eta and not SAMPLERS[arguments.get("sampler", "ddim")].eta:
        notes.append(f"Eta {arguments.pop('eta')}")
    if settings.get("RNG", "GPU") != "CPU":
        notes.append(f"RNG {settings.get('RNG', 'GPU')} (our noise is drawn on the CPU)")
    grid = settings.pop("Script") if settings.get("Script") == PLOT else settings.get("Grid")
    others = [
        f"{name} {value}" for name, value in settings.items() if not WITHOUT_EFFECT.fullmatch(name)
    ]
    notes += [note[:60] for note in others]
    return GenerationInfo(
        arguments,
        model=settings.get("Model"),
        vae=None if settings.get("VAE", "") in NONE else settings["VAE"],
        images={"image": ""} if strength else {},
        notes=tuple(notes),
        grid=grid,
    )


# The web UI's name of a setting → the argument that it is, and its type.
NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {
    about(field).label: (field.name, int if str(field.type).startswith("int") else float)
    for field in fields(Request)
    if field.name in ("num_inference_steps", "guidance_scale", "seed", "clip_skip", "eta")
}


def _size(settings: Mapping[str, str]) -> dict[str, int]:
    """Return the width and height in the text, if it has them."""
    if "Size" not in settings:
        return {}
    sizes = re.fullmatch(r"(\d{1,6})x(\d{1,6})", settings["Size"])
    if not sizes:
        raise ValueError(f"its Size is {settings['Size']!r:.60}; expected one such as 512x768")
    return {"width": int(sizes[1]), "height": int(sizes[2])}


def _strength(settings: Mapping[str, str]) -> tuple[dict[str, float], list[str]]:
    """Return the strength of a picture drawn from an image, and what is not done here."""
    if "Denoising strength" not in settings:
        return {}, []
    if any(name.startswith("Hires") for name in settings):
        return {}, ["Denoising strength"]  # of the second pass
    text = settings["Denoising strength"]
    return {"strength": _number("Denoising strength", text, float)}, []


def _sampler(settings: Mapping[str, str]) -> tuple[dict[str, str], list[str]]:
    """Return the sampler and the schedule in the text, and what is unknown here."""
    if "Sampler" not in settings:
        return {}, []
    schedule = settings.get("Schedule type", "")
    found: dict[str, str] = {}
    try:
        found["sampler"], implied = find_sampler(settings["Sampler"])
        found["schedule"] = implied or "normal"
        if schedule not in NONE:
            found["schedule"] = find_schedule(schedule)
    except ArgumentError:
        return found, [f"Sampler {settings['Sampler']} {schedule}".strip()]
    return found, []


def _pair(text: object) -> tuple[float, ...]:
    try:
        low, high = (float(part) for part in str(text).split(","))
    except ValueError:
        raise ValueError(
            f"its setting guidance_interval is {text!r:.60}; expected two numbers"
        ) from None
    return low, high


def _number(name: str, text: str, convert: Callable[[str], int | float]) -> int | float:
    try:
        return convert(text)
    except ValueError:
        kind = "whole number" if convert is int else "number"
        raise ValueError(f"its {name} is {text!r:.60}; expected a {kind}") from None
