"""ControlNets in the text of A1111's web UI, as its extension sd-webui-controlnet writes them.

ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, …"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST = 16  # ControlNets of one picture
UNIT = re.compile(r"controlnet (\d{1,2})", re.IGNORECASE)
HASH = re.compile(r" *\[[0-9a-fA-F]{6,64}\]$")
IP_MODULE = "ip-adapter-auto"
BALANCED, GUESS = "Balanced", "ControlNet is more important"  # control modes
NAMES = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
LABELS = ("weight", "guidance start", "guidance end")  # of these
DEFAULT = (1.0, 0.0, 1.0)


def control_labels(arguments: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, str]:
    """Return the settings of ControlNets of these names as the extension labels them."""
    found = {}
    for index, name in enumerate(names):
        weight, start, end = (
            value_of(arguments.get(argument, default), index)
            for argument, default in zip(NAMES, DEFAULT, strict=True)
        )
        mode = GUESS if arguments.get("guess_mode") else BALANCED
        found[f"ControlNet {index}"] = (
            f"Module: None, Model: {name.replace(',', ' ')}, Weight: {weight}, Resize Mode: Just "
            f"Resize, Guidance Start: {start}, Guidance End: {end}, Control Mode: {mode}"
        )
    return found


def ip_adapter_labels(
    arguments: Mapping[str, Any], names: tuple[str, ...], first: int
) -> dict[str, str]:
    """Return the settings of IP-Adapters, which are the extension's units after ControlNets."""
    found = {}
    for index, name in enumerate(names):
        weight = value_of(arguments.get("ip_adapter_scale", 1.0), index)
        found[f"ControlNet {first + index}"] = (
            f"Module: {IP_MODULE}, Model: {name.replace(',', ' ')}, Weight: {weight}, Resize Mode: "
            f"Just Resize, Guidance Start: 0, Guidance End: 1, Control Mode: {BALANCED}"
        )
    return found


def take_ip_adapters(
    settings: dict[str, str],
) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """Take the IP-Adapters out of a picture's settings; as ``take_controls``."""
    names: list[str] = []
    weights: list[float] = []
    notes: list[str] = []
    for label in [label for label in settings if UNIT.fullmatch(label)][:MOST]:
        unit = read_unit(settings[label])
        if not unit.get("module", "").casefold().startswith("ip-adapter"):
            continue
        del settings[label]
        weight, start, end = numbers(label, unit)
        names.append(HASH.sub("", unit.get("model", "")) or label)
        weights.append(weight)
        if (start, end) != (0.0, 1.0):
            notes.append(f"{label} Guidance Start {start:g}, Guidance End {end:g}")
    if not names or all(weight == 1 for weight in weights):
        return {}, tuple(names), notes
    return {"ip_adapter_scale": weights if len(weights) > 1 else weights[0]}, tuple(names), notes


def value_of(value: Any, index: int) -> str:
    """Write the number of one ControlNet, of one number for all, a list, or its text."""
    if isinstance(value, str):
        value = [float(part) for part in value.split(",")]
    if isinstance(value, list | tuple):
        value = value[index] if len(value) > 1 else value[0]
    return repr(float(value)).removesuffix(".0")


def take_controls(
    settings: dict[str, str],
) -> tuple[dict[str, Any], tuple[str, ...], list[str]]:
    """Take the ControlNets out of a picture's settings.

    Returns the arguments, the names of the networks, and what is not done here. Raises ValueError
    for a value that is not a number.
    """
    labels = [label for label in settings if UNIT.fullmatch(label)][:MOST]
    names: list[str] = []
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
        module = unit.get("module", unit.get("preprocessor", "none"))
        if module.casefold() not in ("none", ""):
            notes.append(f"{label} Module {module} (give the picture that it made)")
    for argument, default, values in zip(NAMES, DEFAULT, zip(*rows, strict=True), strict=False):
        if any(value != default for value in values):
            arguments[argument] = values if len(values) > 1 else values[0]
    return arguments, tuple(names), notes


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
        try:
            found.append(float(own.get(name, str(default))[:40]))
        except ValueError:
            raise ValueError(
                f"its {label} has the {name} {own[name]!r:.40}; expected a number"
            ) from None
    return found
