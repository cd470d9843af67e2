"""The settings in a picture's file, as written by ldm or another program.

info = read_generation_info("car.png")
pipe = Pipeline.from_pretrained(**info.loading)  # and info.model, if it names one
pipe(**info.arguments).images[0]  # the same picture
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path, PurePosixPath
from typing import Any

from PIL.Image import Image

from ldm.config.arguments import about
from ldm.config.files import open_regular
from ldm.config.upscalers import upscaler_name
from ldm.errors import ArgumentError, ImageError
from ldm.images import control_text
from ldm.images.depth import load_depth
from ldm.images.files import digest, load_image, load_layer, read_texts
from ldm.images.metadata import NEGATIVE, PROMPT, parse_parameters
from ldm.images.text_fields import OURS, POSTPROCESS, settings_of
from ldm.request import OFFSETS, RefinedRequest
from ldm.samplers import SAMPLERS, read_names
from ldm.samplers.names import find_sampler, find_schedule

BUILT_IN = "ldm built-in"  # the model's name in a file
OWN_CONTROLNET = "the model's own"  # name of the ControlNet in a model's folder
LARGEST_BATCH = 1024
LARGEST_HIRES = 8  # hires_scale
LONGEST_PROMPT = 100_000  # characters
LONGEST_NUMBER = 40
MOST_NOTES, LONGEST_NOTE = 20, 60
# Settings that name a thing, but do not change the picture, without case.
WITHOUT_EFFECT = re.compile(
    r"(model|vae|lora|ti|hypernet|refiner)? ?hash(es)?|version|user|batch (size|pos|count)|model|"
    r"vae|rng|size|width|height|sampler|schedule type|scheduler|denoising strength|grid|"
    r"[xyz] (type|values)|app|backend|pipeline|operations|te|unet|sdcpp|guidance|time taken|"
    r"created (date|at)|civitai (resources|metadata)|(negative )?template|raw (negative )?prompt|"
    r"performance|metadata scheme|software|lora weights|torch active.*|sys vram|source identifier"
)
MODEL_ENDINGS = (".safetensors", ".ckpt", ".gguf", ".sft", ".bin", ".pt", ".pth")
MODEL_HASH = re.compile(r" *\[[0-9a-fA-F]{6,64}\]$")  # behind a refiner's name
PLOT = "X/Y/Z plot"  # the web UI's script that draws a grid
OFF = ("", "0", "0.0", "false", "none")
NONE = ("", "automatic", "none", "default", "baked vae")


@dataclass(frozen=True)
class GenerationInfo:
    """How a picture was made.

    Attributes:
        arguments: those of ``Pipeline.stream``. The prompt has the ``<lora:name:scale>`` tags that
            ``ldm-generate`` takes out and loads.
        loading: those of ``Pipeline.from_pretrained``, without the paths.
        model, vae, embeddings: names of files ("ldm built-in" for that model); None if unknown.
        refiner: likewise of the model that drew the last steps; None without one.
        images: argument → digest (see ``images.digest``; "": not known) of each picture that was
            given; it is not in the file and must be given again.
        batch: (size, index): how many pictures were drawn at once, and which of them this is. The
            processor rounds differently for other sizes: bit-identical pictures need the same one.
        batch_prompts: the prompts of all pictures of that batch, if they share a style
            (``style_aligned``): the first one determines it.
        notes: settings in the file that are not supported here, by name.
        missing: arguments of Python that no file holds, such as "latents": without them, another
            picture is drawn.
        optimize: as ``Pipeline.optimize`` was called, if not as the command calls it; engine: what
            computed in PyTorch's place.
        template: with choices, from which the prompt was drawn (``ldm.text.wildcards``).
        grid: what the file shows if it holds several pictures; the first one is described here.
    """

    arguments: dict[str, Any]
    loading: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    refiner: str | None = None
    vae: str | None = None
    embeddings: tuple[str, ...] = ()
    controlnets: tuple[str, ...] = ()  # names of files or folders, in the order of loading
    t2i_adapters: tuple[str, ...] = ()  # likewise
    preprocessors: tuple[str, ...] = ()  # of their pictures, "" for one as it is; () for none
    ip_adapters: tuple[str, ...] = ()  # likewise
    text_encoders: tuple[str, ...] = ()  # names of files, that took the place of the model's
    images: dict[str, str] = field(default_factory=dict)
    batch: tuple[int, int] = (1, 0)
    batch_prompts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    grid: str | None = None
    missing: tuple[str, ...] = ()
    optimize: bool | None = None
    engine: str | None = None
    template: str | None = None

    def settings(self, version: str, drawn: Mapping[str, str]) -> dict[str, Any]:
        """Return what ``images.save_image`` writes; ``drawn`` describes the machine."""
        found = {
            name: value
            for name, value in vars(self).items()
            if (value or value is False) and name != "notes"
        }
        found["arguments"] = shifted(self.arguments, 1)
        return {OURS: version} | found | {"drawn": dict(drawn)}


def load_given(name: str, source: Any) -> Image:
    """Load a picture as the digest of an option's picture counts it.

    A mask keeps its transparency, and a depth map its own values. Raises ImageError as
    ``load_image`` does.
    """
    return {"mask": load_layer, "depth_map": load_depth}.get(name, load_image)(source)


def read_generation_info(path: str | Path | Image) -> GenerationInfo:
    """Read the settings in a PNG, JPEG, WebP, AVIF or GIF file: our own, else another program's.

    Those of A1111's web UI and all that write its text (Forge, SD.Next, stable-diffusion.cpp,
    Civitai, …), of ComfyUI, InvokeAI, Fooocus, SwarmUI, NovelAI, Draw Things and Easy Diffusion.
    path: a file, or a PIL image as ``Pipeline`` returns it or PIL opens it.
    Raises ImageError for a file without, for values of a wrong type, and for settings that cannot
    be read; then it names the program.
    """
    # Only here: programs that only write pictures start without the readers of others' files.
    from ldm.images.programs import read_labels

    texts = read_texts(path)
    try:
        settings = settings_of(texts)
        if settings is not None:
            return from_settings(settings)
        labels = read_labels(texts)
        if labels is None:
            raise ValueError(
                "it does not say how it was made; only what ldm-generate or another image "
                "generator wrote, and no other program has changed, does"
            )
        return from_labels(labels)
    except (ValueError, RecursionError) as error:
        name = "the picture" if isinstance(path, Image) else path
        raise ImageError(f"{name}: {error}") from None


def shifted(arguments: Mapping[str, Any], sign: int) -> dict[str, Any]:
    """Count as files do (sign 1) or as Python does (-1), where these differ: ``clip_skip``."""
    numbers = {
        name: arguments[name] + sign * offset
        for name, offset in OFFSETS.items()
        if isinstance(arguments.get(name), int | float)
    }
    return {**arguments, **numbers}


def from_settings(settings: Mapping[str, Any]) -> GenerationInfo:
    """Convert our own settings. Raises ValueError for a value of a wrong type."""

    def get(name: str, kind: type, default: Any) -> Any:
        value = settings.get(name, default)
        if value is not default and not isinstance(value, kind):
            raise ValueError(f"its setting {name} is {value!r:.60}; expected a {kind.__name__}")
        return value

    batch, given = get("batch", list, [1, 0]), get("arguments", dict, {})
    seed = given.get("variation_seed", given.get("seed", 0))  # the one that counts up
    if [type(n) for n in (*batch, seed)] != [int] * 3 or not (
        0 <= batch[1] < batch[0] <= LARGEST_BATCH and seed >= batch[1]
    ):
        raise ValueError(f"its setting batch is {batch!r:.60} with the seed {seed!r:.60}")
    for part in ("arguments", "loading"):
        for name, value in get(part, dict, {}).items():
            if name == "negative_prompt" and value is None:  # zeros stand for it
                continue
            if not isinstance(value, str | int | float):
                raise ValueError(f"its setting {name} is {value!r:.60}; expected a text or number")
    arguments = shifted(get("arguments", dict, {}), -1)
    batch_prompts = tuple(map(str, get("batch_prompts", list, [])))
    if len(batch_prompts) not in (0, batch[0]) or len("".join(batch_prompts)) > LONGEST_PROMPT:
        raise ValueError(
            f"its setting batch_prompts has {len(batch_prompts)} texts for a batch of {batch[0]}"
        )
    if "guidance_interval" in arguments:
        arguments["guidance_interval"] = _pair(arguments["guidance_interval"])
    for name in {*control_text.PER_NETWORK, "ip_adapter_scale"} & set(arguments):
        arguments[name] = _numbers(name, arguments[name])
    return GenerationInfo(
        arguments=arguments,
        loading=get("loading", dict, {}),
        model=get("model", str, None),
        refiner=get("refiner", str, None),
        vae=get("vae", str, None),
        embeddings=tuple(map(str, get("embeddings", list, []))),
        text_encoders=tuple(map(str, get("text_encoders", list, []))),
        controlnets=tuple(map(str, get("controlnets", list, []))),
        t2i_adapters=tuple(map(str, get("t2i_adapters", list, []))),
        preprocessors=tuple(map(str, get("preprocessors", list, []))),
        ip_adapters=tuple(map(str, get("ip_adapters", list, []))),
        images={name: str(digest) for name, digest in get("images", dict, {}).items()},
        batch=tuple(batch),
        batch_prompts=batch_prompts,
        grid=get("grid", str, None),
        missing=tuple(map(str, get("missing", list, []))),
        optimize=get("optimize", bool, None),
        engine=get("engine", str, None),
        template=get("template", str, None),
        notes=tuple(filter(None, [get(POSTPROCESS, str, "")])),
    )


def from_text(text: str) -> GenerationInfo:
    """Read the web UI's text. Raises ValueError for a value that is not a number."""
    return from_labels(parse_parameters(text))


def from_labels(labels: Mapping[str, str]) -> GenerationInfo:
    """Convert settings with the web UI's names. Raises ValueError for a value of a wrong type."""
    settings = {LABELS.get(name.casefold(), name): value for name, value in labels.items()}
    arguments: dict[str, Any] = {"prompt": settings.pop(PROMPT, "")}
    if negative := settings.pop(NEGATIVE, ""):
        arguments["negative_prompt"] = negative
    for name, text in arguments.items():
        if len(text) > LONGEST_PROMPT:
            raise ValueError(f"its {name} has {len(text)} characters; at most {LONGEST_PROMPT}")
    if _unset(settings.get("Eta", "")):
        settings.pop("Eta", None)
    arguments |= _take_hires(settings)
    for label, (name, convert) in NUMBERS.items():
        if label in settings:
            arguments[name] = _number(label, settings.pop(label), convert)
    if "clip_skip" in arguments:  # 0 and -1 are the last layer, too
        arguments["clip_skip"] = max(arguments["clip_skip"] - OFFSETS["clip_skip"], 0)
    refiner = _file_name(MODEL_HASH.sub("", settings.pop("Refiner", "")))
    if refiner is None or not 0 < arguments.get("refiner_start", 0.8) < 1:  # never, as in A1111
        refiner = None
        arguments.pop("refiner_start", None)
    arguments |= _size(settings)
    strength, notes = _strength(settings)
    sampler, unknown = _sampler(settings)
    arguments |= strength | sampler
    notes += unknown
    image_prompts, adapters, unread = control_text.take_ip_adapters(settings)
    units = control_text.take_units(settings)
    arguments |= image_prompts | units.arguments
    notes += unread + units.notes
    given = {"image": strength, "ip_adapter_image": adapters}
    eta = arguments.get("eta")
    if eta and not SAMPLERS[arguments.get("sampler", "ddim")].eta:
        notes.append(f"Eta {arguments.pop('eta')}")
    if settings.get("RNG", "GPU").casefold() != "cpu":
        notes.append(f"RNG {settings.get('RNG', 'GPU')} (our noise is drawn on the CPU)")
    grid = settings.pop("Script") if settings.get("Script") == PLOT else settings.get("Grid")
    return GenerationInfo(
        arguments,
        model=_file_name(settings.get("Model", "")) or _file_name(settings.get("Unet", "")),
        refiner=refiner,
        vae=_file_name(settings.get("VAE", "")),
        controlnets=units.controlnets,
        preprocessors=units.preprocessors,
        t2i_adapters=units.t2i_adapters,
        ip_adapters=adapters,
        images={name: "" for name, there in given.items() if there} | units.images,
        notes=_notes(notes, settings),
        grid=grid,
    )


# The web UI's name of a setting → the argument that it is, and its type.
NUMBERS: dict[str, tuple[str, type[int] | type[float]]] = {
    about(field).label: (field.name, int if str(field.type).startswith("int") else float)
    for field in fields(RefinedRequest)
    if field.name
    in (
        *("num_inference_steps", "guidance_scale", "image_guidance_scale"),
        *("seed", "clip_skip", "eta", "refiner_start"),
    )
}


# The names that are read, by the name without case.
LABELS = {
    name.casefold(): name
    for name in (
        *(PROMPT, NEGATIVE, *NUMBERS, "Size", "Width", "Height", "Sampler", "Schedule type"),
        *("Scheduler", "Denoising strength", "Model", "Unet", "VAE", "RNG", "Script", "Grid"),
        *("Refiner", "Hires upscale", "Hires upscaler", "Hires steps", "Hires resize"),
    )
}


def model_name(path: str | Path | None) -> str:
    """Name a model for metadata: by its file's name without ending, or its folder's in full."""
    if path is None:
        return BUILT_IN
    resolved = Path(path).expanduser().resolve()
    return resolved.stem if resolved.is_file() else resolved.name


def adapter_name(path: str | Path) -> str:
    """Name an IP-Adapter for metadata: a file of ldm's usual name by the folder around it."""
    path = Path(path)
    usual = path.name == "ip_adapter.safetensors"
    return model_name(path.resolve().parent if usual else path)


def given_digest(name: str, source: Any) -> str:
    """Return the digest of what an option gives: of a picture, or of a file of embeddings."""
    if isinstance(source, str | Path) and str(source).lower().endswith(".safetensors"):
        try:
            with open_regular(source, ImageError) as file:
                found = hashlib.sha256()
                while block := file.read(1 << 20):
                    found.update(block)
                return found.hexdigest()[:10]
        except ImageError:
            raise
        except OSError as error:
            raise ImageError(f"{source} cannot be read ({error.strerror})") from None
    return digest(load_given(name, source))


def controlnet_name(path: str | Path) -> str:
    """Name a ControlNet for metadata: a file of diffusers' usual name by its folder."""
    path = Path(path)
    usual = path.stem.startswith("diffusion_pytorch_model")
    return model_name(path.resolve().parent if usual else path)


def _unset(text: str) -> bool:
    """Whether a number stands for the program's own choice: infinity in stable-diffusion.cpp."""
    try:
        return not math.isfinite(float(text[:LONGEST_NUMBER]))
    except ValueError:
        return text == ""


def _file_name(text: str) -> str | None:
    """Return the name of a file without folders and ending, as it is given; None for none."""
    if text.casefold() in NONE:
        return None
    ending = PurePosixPath(text).suffix
    if ending.casefold() in MODEL_ENDINGS:
        return PurePosixPath(text.replace("\\", "/")).name.removesuffix(ending)
    return text


def _notes(notes: list[str], settings: Mapping[str, str]) -> tuple[str, ...]:
    """Return what is not done here: some of it, if it is much."""
    notes = notes + [
        f"{name} {value}".strip()
        for name, value in settings.items()
        if value.casefold() not in OFF and not WITHOUT_EFFECT.fullmatch(name.casefold())
    ]
    if len(notes) > MOST_NOTES:
        notes = [*notes[:MOST_NOTES], f"and {len(notes) - MOST_NOTES} more"]
    return tuple(" ".join(note[:LONGEST_NOTE].split()) for note in notes)


def _size(settings: Mapping[str, str]) -> dict[str, int]:
    """Return the width and height in the text, if it has them."""
    if "Size" not in settings:
        sides = [(s.casefold(), settings[s]) for s in ("Width", "Height") if s in settings]
        return {side: int(_number(side, text, int)) for side, text in sides}
    sizes = re.fullmatch(r"(\d{1,6}) ?[xX×] ?(\d{1,6})", settings["Size"])
    if not sizes:
        raise ValueError(f"its Size is {settings['Size']!r:.60}; expected one such as 512x768")
    return {"width": int(sizes[1]), "height": int(sizes[2])}


def _take_hires(settings: dict[str, str]) -> dict[str, Any]:
    """Take the second pass out of settings, if the text has one that ``hires_fix`` can draw.

    What is left of it, such as another number of steps, is not done here.
    """
    scale, steps = settings.get("Hires upscale", ""), settings.get("Hires steps", "0")
    if not scale or "Hires resize" in settings:
        return {}
    found: dict[str, Any] = {"hires_scale": _number("Hires upscale", scale, float)}
    if not 1 <= found["hires_scale"] <= LARGEST_HIRES:
        return {}
    if "Denoising strength" in settings:
        text = settings.pop("Denoising strength")
        found["hires_strength"] = _number("Denoising strength", text, float)
    if upscaler := settings.pop("Hires upscaler", ""):
        found["hires_upscaler"] = upscaler_name(upscaler)
    if steps != "0":
        found["hires_steps"] = _number("Hires steps", steps, int)
    settings.pop("Hires steps", None)
    del settings["Hires upscale"]
    return found


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
    name, schedule = settings.get("Sampler", ""), settings.get("Schedule type", "")
    if other := settings.get("Scheduler", ""):  # a schedule beside a sampler, else a sampler
        name, schedule = (name, schedule or other) if name else (other, schedule)
    if name.casefold() in NONE:
        return {}, []
    found: dict[str, str] = {}
    try:
        found["sampler"], implied = find_sampler(name)
        found["schedule"] = implied or "normal"
        if schedule.casefold() not in NONE:
            found["schedule"] = find_schedule(schedule)
    except ArgumentError:
        return found, [f"Sampler {name} {schedule}".strip()]
    try:
        read_names(found["sampler"], found["schedule"])
    except ArgumentError:  # which the other program's method can use, and ours cannot
        return found, [f"Schedule type {found.pop('schedule')} of {name}"]
    return found, []


def _pair(text: object) -> tuple[float, ...]:
    try:
        low, high = (float(part) for part in str(text).split(","))
    except ValueError:
        raise ValueError(
            f"its setting guidance_interval is {text!r:.60}; expected two numbers"
        ) from None
    return low, high


def _numbers(name: str, value: object) -> float | tuple[float, ...]:
    """Read "0.5" or "0.5,1"."""
    try:
        found = tuple(float(part) for part in str(value).split(","))
    except ValueError:
        raise ValueError(f"its setting {name} is {value!r:.60}; expected numbers") from None
    return found if len(found) > 1 else found[0]


def _number(name: str, text: str, convert: Callable[[str], int | float]) -> int | float:
    kind = "whole number" if convert is int else "number"
    try:
        if len(text) > LONGEST_NUMBER:
            raise ValueError(text)
        if convert is int and (number := float(text)).is_integer() and not text.isdecimal():
            return int(number) if abs(number) < 2**53 else int(text)
        return convert(text)
    except (ValueError, OverflowError):
        raise ValueError(f"its {name} is {text!r:.60}; expected a {kind}") from None
