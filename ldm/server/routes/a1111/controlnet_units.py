"""Units of A1111's ControlNet extension: ``alwayson_scripts.controlnet.args`` → arguments."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image
from pydantic import BaseModel, ConfigDict, FiniteFloat, ValidationError, model_validator

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.source import find_own_controlnet
from ldm.control.preprocessed import ControlSource
from ldm.images.control_text import GUESS, HASH, MODES, PROMPT, read_reference
from ldm.images.files import load_image, load_layer, stretch
from ldm.images.generation_info import OWN_CONTROLNET
from ldm.images.resizing import crop_and_resize, resize_and_fill
from ldm.server.errors import ServerError
from ldm.server.routes.a1111.controlnet_modules import NONE, find_module, with_mask
from ldm.server.routes.a1111.requests import Asked, size_of
from ldm.server.state import Server
from ldm.server.uploads import read_upload

SCRIPT = "controlnet"
MOST_UNITS = 8
MODE_NUMBERS = ("Balanced", PROMPT, GUESS)
RESIZE = {
    "just resize": 0,
    "crop and resize": 1,
    "resize and fill": 2,
    "inner fit (scale to fit)": 1,
    "scale to fit (inner fit)": 1,
    "outer fit (shrink to fit)": 2,
    "envelope (outer fit)": 2,
}
RESIZED = (
    lambda image, width, height: stretch(image, height, width),
    crop_and_resize,
    resize_and_fill,
)
LEAST_RES, MOST_RES, RES = 64, 2048, 512  # of processor_res


class Unit(BaseModel):
    """One unit, with the extension's names and defaults; null is the default."""

    model_config = ConfigDict(extra="allow", protected_namespaces=())

    enabled: bool = True
    image: Any = None
    input_image: Any = None
    mask: str | None = None
    mask_image: str | None = None
    module: str = "none"
    model: str = "None"
    weight: FiniteFloat = 1.0
    resize_mode: int | str = 1
    processor_res: int = -1
    threshold_a: FiniteFloat = -1
    threshold_b: FiniteFloat = -1
    guidance_start: FiniteFloat = 0.0
    guidance_end: FiniteFloat = 1.0
    control_mode: int | str = 0
    pixel_perfect: bool = False
    guessmode: bool = False
    low_vram: bool = False
    hr_option: str = "Both"
    save_detected_map: bool = True

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, data: Any) -> Any:
        """Take null for the default."""
        if not isinstance(data, dict):
            return data
        return {name: value for name, value in data.items() if value is not None}

    @property
    def mode(self) -> str:
        """The control mode in the extension's words."""
        mode = self.control_mode
        if isinstance(mode, int):
            mode = MODE_NUMBERS[mode] if mode in range(3) else str(mode)
        return GUESS if self.guessmode else mode

    @property
    def resizing(self) -> int | None:
        """0: stretch, 1: crop, 2: fill; None for another name."""
        mode = self.resize_mode
        if isinstance(mode, int):
            return mode if mode in range(3) else None
        return RESIZE.get(mode.lower())


@dataclass
class Control:
    """What a ControlNet of a unit reads, and how."""

    unit: Unit
    name: str | None  # None: the model's own
    picture: Image.Image | ControlSource


def add_scripts(asked: Asked, init: Image.Image | None = None) -> None:
    """Add the units of ``alwayson_scripts``. Raises ServerError for other scripts that are on.

    init: the image of img2img, which units without a picture read.
    """
    for name, script in asked.body.alwayson_scripts.items():
        args = script.get("args", []) if isinstance(script, dict) else None
        if not isinstance(args, list):
            raise ServerError(
                f"alwayson_scripts.{name:.60} must be an object with a list, args", name
            )
        if name.lower() == SCRIPT:
            add_units(asked, args, init)
        elif not args or args[0] is False:
            asked.notes.append(f"alwayson_scripts.{name:.60}: it is off, and not there")
        else:
            asked.refuse(
                "alwayson_scripts",
                f"has the script {name!r:.60}, which is not there; only {SCRIPT} is",
            )


def add_units(asked: Asked, args: list[Any], init: Image.Image | None) -> None:
    """Add the arguments of ControlNets and of a reference picture."""
    if len(args) > MOST_UNITS:
        asked.refuse(SCRIPT, f"has {len(args)} units; at most {MOST_UNITS} are read")
    controls = []
    for number, given in enumerate(args):
        label = f"ControlNet {number}"
        unit = read_unit(asked, label, given)
        if not unit.enabled:
            continue
        if unit.module.lower() in MODES:
            add_reference(asked, label, unit, init)
        else:
            controls.append(read_control(asked, label, unit, init))
    if controls:
        add_controls(asked, controls)


def read_unit(asked: Asked, label: str, given: Any) -> Unit:
    """Read one unit. Raises ServerError for a field of a wrong type, or that is not done here."""
    try:
        unit = Unit.model_validate(given)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise ServerError(f"{label}: {where} {first['msg']}", where or SCRIPT, 422) from None
    if not unit.enabled:
        return unit
    if unit.mode == PROMPT or unit.mode not in MODE_NUMBERS:
        asked.refuse(
            f"{label}: control_mode",
            f"is {unit.mode!r:.60}; here it is {MODE_NUMBERS[0]!r} or {GUESS!r}",
        )
    if unit.resizing is None:
        asked.refuse(f"{label}: resize_mode", f"is {unit.resize_mode!r:.60}; give 0, 1 or 2")
    if unit.hr_option.lower() != "both" and asked.names.get("hires"):
        asked.refuse(f"{label}: hr_option", f"is {unit.hr_option!r:.60}; both passes are steered")
    asked.notes += [f"{label}: {name}: no such field" for name in unit.model_extra or ()]
    if unit.low_vram:
        asked.notes.append(f"{label}: low_vram: this server's memory is managed as it starts")
    return unit


def read_picture(asked: Asked, label: str, unit: Unit, init: Image.Image | None) -> Image.Image:
    """Return a unit's picture, with its mask as transparency. Raises ServerError without one."""
    given, mask = unit.image or unit.input_image, unit.mask or unit.mask_image
    if isinstance(given, dict):  # as the web page sends them
        given, mask = given.get("image"), given.get("mask") or mask
    most = asked.server.limits.upload_pixels
    region = asked.names.get("region")
    if given:
        picture = read_upload(given, f"{label}: image", most)
        if region is not None:  # as the extension cuts it
            picture = stretch(load_layer(picture), region.image.height, region.image.width)
            picture = picture.crop(region.box)
    elif init is not None:
        picture = init
    else:
        asked.refuse(f"{label}: image", "is missing; send the picture that it reads")
    if not mask:
        return picture
    return with_mask(picture, read_upload(mask, f"{label}: mask", most), unit.module, label)


def read_control(asked: Asked, label: str, unit: Unit, init: Image.Image | None) -> Control:
    """Read what a ControlNet reads: preprocessed at the drawn size, or at ``processor_res``."""
    picture = read_picture(asked, label, unit, init)
    thresholds = (unit.threshold_a, unit.threshold_b)
    module = find_module(unit.module, thresholds, label, asked.notes)
    name = find_network(asked, label, unit)
    if module is None:
        return Control(unit, name, shaped(asked, unit, load_image(picture)))
    if unit.pixel_perfect or module[0] == "inpaint":
        source = ControlSource(module[0], shaped(asked, unit, load_layer(picture)), module[1])
        return Control(unit, name, source.loaded())
    scaled = at_resolution(load_layer(picture), unit.processor_res, label)
    drawn = ControlSource(module[0], scaled, module[1]).loaded().picture()
    return Control(unit, name, shaped(asked, unit, drawn))


def shaped(asked: Asked, unit: Unit, picture: Image.Image) -> Image.Image:
    """Return a picture in the shape of the size to draw; one that has it is stretched later."""
    width, height = size_of(asked)
    if not unit.resizing or picture.width * height == picture.height * width:
        return picture
    return RESIZED[unit.resizing](picture, width, height)


def at_resolution(picture: Image.Image, resolution: int, label: str) -> Image.Image:
    """Return a picture whose shorter side has so many pixels; -1 is the extension's 512."""
    side = RES if resolution < 0 else resolution
    if not LEAST_RES <= side <= MOST_RES:
        raise ServerError(
            f"{label}: processor_res is {resolution}; it must be in [{LEAST_RES}, {MOST_RES}]",
            "processor_res",
        )
    scale = side / min(picture.size)
    width, height = (max(round(length * scale), 1) for length in picture.size)
    if max(width, height) > 4 * MOST_RES:
        raise ServerError(f"{label}: image is {picture.width}x{picture.height}, too long", "image")
    return stretch(picture, height, width)


def find_network(asked: Asked, label: str, unit: Unit) -> str | None:
    """Return a ControlNet's listed name; None is the model's own, if it has one."""
    server = asked.server
    name = HASH.sub("", unit.model).strip()
    if name.lower() not in NONE and name != OWN_CONTROLNET:
        return server.library.choose("controlnet", server.library.controlnets, name)
    if not has_own(server, asked.model):
        listed = ", ".join(list(server.library.controlnets)[:8]) or "none"
        asked.refuse(
            f"{label}: model",
            f"is {unit.model!r:.60}, and {asked.model} has no ControlNet of its own; there are: "
            f"{listed}",
        )
    return None


def has_own(server: Server, model: str) -> bool:
    """Whether a model of the library has a ControlNet of its own."""
    path = server.library.models[model]
    folder = asset_path("weights") if path is None else path
    return not isinstance(folder, str) and find_own_controlnet(folder) is not None


def add_controls(asked: Asked, controls: list[Control]) -> None:
    """Add the arguments of ControlNets."""
    names = [control.name for control in controls]
    if None in names and len(names) > 1:
        asked.refuse("controlnet", "units need a model each if there are several")
    modes = {control.unit.mode == GUESS for control in controls}
    if len(modes) > 1:
        asked.refuse("controlnet", f"units have {GUESS!r} all or none")
    units = [control.unit for control in controls]
    width, height = size_of(asked)
    asked.names["controlnets"] = [name for name in names if name is not None]
    asked.arguments |= {
        "width": width,
        "height": height,
        "control_image": [control.picture for control in controls],
        "controlnet_conditioning_scale": [unit.weight for unit in units],
        "control_guidance_start": [unit.guidance_start for unit in units],
        "control_guidance_end": [unit.guidance_end for unit in units],
        "guess_mode": modes.pop(),
    }
    asked.maps += [one.picture for one in controls if one.unit.save_detected_map]


def add_reference(asked: Asked, label: str, unit: Unit, init: Image.Image | None) -> None:
    """Add the arguments of a reference picture."""
    if "reference_image" in asked.arguments:
        asked.refuse(f"{label}: module", f"is {unit.module}, of which one is read")
    text = {
        "module": unit.module,
        "weight": str(unit.weight),
        "guidance start": str(unit.guidance_start),
        "guidance end": str(unit.guidance_end),
        "control mode": unit.mode,
    }
    if 0 <= unit.threshold_a <= 1:
        text["threshold a"] = str(unit.threshold_a)
    elif unit.threshold_a > 1:
        asked.notes.append(f"{label}: threshold_a {unit.threshold_a:g}, out of [0, 1]: 0.5")
    arguments, undone = read_reference(label, text)
    if undone:
        asked.refuse(undone[0], "is not done here")
    asked.arguments |= {
        **arguments,
        "reference_image": load_image(read_picture(asked, label, unit, init)),
    }
