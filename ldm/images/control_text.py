"""ControlNets in the text of A1111's web UI, as its extension sd-webui-controlnet writes them.

ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, …"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST = 16  # ControlNets of one picture
UNIT = re.compile(r"controlnet (\d{1,2})", re.IGNORECASE)
HASH = re.compile(r" *\[[0-9a-fA-F]{6,64}\]$")
BALANCED, GUESS = "Balanced", "ControlNet is more important"  # control modes
NAMES = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
LABELS = ("weight", "guidance start", "guidance end")  # of these
DEFAULT = (1.0, 0.0, 1.0)
THRESHOLDS = ("Threshold A", "Threshold B")
# Preprocessors that the extension computes in the same way: its name, and (parameter, default) of
# its thresholds. The others have the names that they have here.
MODULES = {
    "canny": ("canny", (("low", 100.0), ("high", 200.0))),
    "lineart": (
        "lineart_standard (from white bg & black line)",
        (("sigma", 6.0), ("threshold", 8.0)),
    ),
    "tile": ("tile_resample", (("factor", 4.0),)),
}
OURS = {"softedge", "scribble", "grey", "inpaint"}


class Controls(NamedTuple):
    """The ControlNets of a picture's settings; the last are what is not done here."""

    arguments: dict[str, Any]
    names: tuple[str, ...]
    preprocessors: tuple[str, ...]
    notes: list[str]


def control_labels(
    arguments: Mapping[str, Any], names: tuple[str, ...], preprocessors: tuple[str, ...] = ()
) -> dict[str, str]:
    """Return the settings of ControlNets of these names as the extension labels them.

    preprocessors: "canny,low=50" of each; () if there are none.
    """
    found = {}
    for index, name in enumerate(names):
        weight, start, end = (
            value_of(arguments.get(argument, default), index)
            for argument, default in zip(NAMES, DEFAULT, strict=True)
        )
        mode = GUESS if arguments.get("guess_mode") else BALANCED
        module, thresholds = module_of("".join(preprocessors[index : index + 1]))
        found[f"ControlNet {index}"] = (
            f"Module: {module}, Model: {name.replace(',', ' ')}, Weight: {weight}, Resize Mode: "
            f"Just Resize{thresholds}, Guidance Start: {start}, Guidance End: {end}, Control Mode: "
            f"{mode}"
        )
    return found


def module_of(label: str) -> tuple[str, str]:
    """Return the extension's name of a preprocessor, and its settings: "canny,low=50"."""
    if not label:
        return "None", ""
    name, *items = label.split(",")
    module, rows = MODULES.get(name, (name, ()))
    given = dict(item.split("=", 1) for item in items)
    values = [float(given.get(parameter, default)) for parameter, default in rows]
    shown = [f", {name}: {value:g}" for name, value in zip(THRESHOLDS, values, strict=False)]
    return module, "".join([*shown, ", Pixel Perfect: True"])


def preprocessor_of(unit: Mapping[str, str]) -> str | None:
    """Return the preprocessor that a unit's module is here, such as "canny,low=50"; None if none.

    Raises ValueError for a threshold that is not a number.
    """
    module = unit.get("module", unit.get("preprocessor", "none")).casefold()
    if module in ("none", ""):
        return ""
    if module in OURS:
        return module
    for name, (theirs, rows) in MODULES.items():
        if module == theirs.casefold():
            items = [name]
            for label, (parameter, default) in zip(THRESHOLDS, rows, strict=False):
                value = number(label, unit.get(label.casefold(), str(default)))
                items += [f"{parameter}={value:g}"] if value != default else []
            return ",".join(items)
    return None


def value_of(value: Any, index: int) -> str:
    """Write the number of one ControlNet, of one number for all, a list, or its text."""
    if isinstance(value, str):
        value = [float(part) for part in value.split(",")]
    if isinstance(value, list | tuple):
        value = value[index] if len(value) > 1 else value[0]
    return repr(float(value)).removesuffix(".0")


def take_controls(settings: dict[str, str]) -> Controls:
    """Take the ControlNets out of a picture's settings.

    Raises ValueError for a value that is not a number.
    """
    labels = [label for label in settings if UNIT.fullmatch(label)][:MOST]
    names: list[str] = []
    modules: list[str] = []
    rows: list[list[float]] = []
    notes: list[str] = []
    arguments: dict[str, Any] = {}
    for label in sorted(labels, key=lambda label: int(label.split()[1])):
        unit = read_unit(settings.pop(label))
        names.append(HASH.sub("", unit.get("model", "")) or label)
        rows.append(numbers(label, unit))
        if unit.get("control mode", "").casefold() == GUESS.casefold():
            arguments["guess_mode"] = True
        elif "prompt is more" in unit.get("control mode", ""):
            notes.append(f"{label} Control Mode {unit['control mode']}")
        module = preprocessor_of(unit)
        modules.append(module or "")
        if module is None:
            theirs = unit.get("module", unit.get("preprocessor"))
            notes.append(f"{label} Module {theirs} (give the picture that it made)")
        elif module and "processor res" in unit and unit.get("pixel perfect") != "True":
            notes.append(f"{label} Processor Res {unit['processor res']}")
    for argument, default, values in zip(NAMES, DEFAULT, zip(*rows, strict=True), strict=False):
        if any(value != default for value in values):
            arguments[argument] = values if len(values) > 1 else values[0]
    return Controls(arguments, tuple(names), tuple(modules) if any(modules) else (), notes)


def read_unit(text: str) -> dict[str, str]:
    """Read the "Name: value" pairs of one ControlNet; names in lower case."""
    parts = (part.partition(":") for part in re.split(r", (?=[\w /]+: ?)", text))
    return {name.strip().casefold(): value.strip() for name, colon, value in parts if colon}


def numbers(label: str, unit: Mapping[str, str]) -> list[float]:
    """Return the weight, and where it starts and ends, also as older versions write them."""
    own = dict(unit)
    if "starting/ending" in own:
        own["guidance start"], _, own["guidance end"] = (
            own["starting/ending"].strip("() ").partition(",")
        )
    found = []
    for name, default in zip(LABELS, DEFAULT, strict=True):
        found.append(number(f"{label} has the {name}", own.get(name, str(default))))
    return found


def number(name: str, text: str) -> float:
    """Read a number. Raises ValueError for what is none."""
    try:
        return float(text[:40])
    except ValueError:
        raise ValueError(f"its {name} {text!r:.40}; expected a number") from None
