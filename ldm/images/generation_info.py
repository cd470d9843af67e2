"""What a picture file says of how it was made, by ldm or by A1111's web UI.

info = read_generation_info("car.png")
pipe = Pipeline.from_pretrained(**info.loading)  # and info.model, if it names one
pipe(**info.arguments).images[0]  # the same picture
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError, ImageError
from ldm.images import metadata, read_parameters, read_settings
from ldm.samplers import SAMPLERS
from ldm.samplers.names import find_sampler, find_schedule

BUILT_IN = "ldm built-in"  # the model's name in a file
LARGEST_BATCH = 1024
# Settings of the web UI that name a thing, but do not change the picture.
NAMES = re.compile(
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
        model, vae, embeddings: names of files; "ldm built-in" is a model's, None: it does not say.
        images: argument → digest (see ``images.digest``; "": not known) of each picture that was
            given, which is not in the file and must be given again.
        batch: (size, index): as which picture of how many at once it was drawn. The processor
            rounds differently for other sizes: the very same bits need the same one.
        notes: what the file asks for and we cannot do, by name.
        grid: what the file shows, where that is several pictures; the first one is told here.
    """

    arguments: dict[str, Any]
    loading: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    vae: str | None = None
    embeddings: tuple[str, ...] = ()
    images: dict[str, str] = field(default_factory=dict)
    batch: tuple[int, int] = (1, 0)
    notes: tuple[str, ...] = ()
    grid: str | None = None

    def settings(self, version: str, drawn: Mapping[str, str]) -> dict[str, Any]:
        """What ``images.save_image`` writes; ``drawn``: where it was drawn, for information."""
        told = {name: value for name, value in vars(self).items() if value and name != "notes"}
        return {metadata.OURS: version} | told | {"drawn": dict(drawn)}


def read_generation_info(path: str | Path) -> GenerationInfo:
    """Read what a PNG, JPEG or WebP file says: our own settings, else the web UI's text.

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
    """Our own settings → GenerationInfo. Raises ValueError for a value of a wrong type."""

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
        images={name: str(told) for name, told in get("images", dict, {}).items()},
        batch=tuple(batch),
        grid=get("grid", str, None),
    )


def from_text(text: str) -> GenerationInfo:
    """The web UI's text → GenerationInfo. Raises ValueError for a value that is not a number."""
    told = metadata.parse_parameters(text)
    arguments: dict[str, Any] = {"prompt": told.pop(metadata.PROMPT)}
    if negative := told.pop(metadata.NEGATIVE):
        arguments["negative_prompt"] = negative
    notes: list[str] = []

    for name, (argument, convert) in NUMBERS.items():
        if name in told:
            arguments[argument] = _number(name, told.pop(name), convert)
    if "Size" in told:
        sizes = re.fullmatch(r"(\d{1,6})x(\d{1,6})", told["Size"])
        if not sizes:
            raise ValueError(f"its Size is {told['Size']!r:.60}; expected one such as 512x768")
        arguments["width"], arguments["height"] = map(int, sizes.groups())
    given = {}
    if "Denoising strength" in told:
        if any(name.startswith("Hires") for name in told):
            notes.append("Denoising strength")  # of the second pass
        else:
            strength = _number("Denoising strength", told["Denoising strength"], float)
            arguments["strength"], given = strength, {"image": ""}
    if "Sampler" in told:
        schedule = told.get("Schedule type", "")
        try:
            name, implied = find_sampler(told["Sampler"])
            arguments["sampler"] = name
            arguments["schedule"] = implied or "normal"
            if schedule not in NONE:
                arguments["schedule"] = find_schedule(schedule)
        except ArgumentError:
            notes.append(f"Sampler {told['Sampler']} {schedule}".strip())
    eta = arguments.get("eta")
    if eta and not SAMPLERS[arguments.get("sampler", "ddim")].eta:
        notes.append(f"Eta {arguments.pop('eta')}")
    if told.get("RNG", "GPU") != "CPU":
        notes.append(f"RNG {told.get('RNG', 'GPU')} (our noise is drawn on the CPU)")
    grid = told.pop("Script") if told.get("Script") == PLOT else told.get("Grid")
    notes += [f"{name} {value}"[:60] for name, value in told.items() if not NAMES.fullmatch(name)]
    return GenerationInfo(
        arguments,
        model=told.get("Model"),
        vae=None if told.get("VAE", "") in NONE else told["VAE"],
        images=given,
        notes=tuple(notes),
        grid=grid,
    )


NUMBERS: dict[str, tuple[str, Callable[[str], int | float]]] = {
    "Steps": ("num_inference_steps", int),
    "CFG scale": ("guidance_scale", float),
    "Seed": ("seed", int),
    "Clip skip": ("clip_skip", int),
    "Eta": ("eta", float),
}


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
