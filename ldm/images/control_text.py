"""ControlNets and reference pictures in the text of A1111's web UI.

Its extension sd-webui-controlnet writes them:

ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, …"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

MOST = 16  # ControlNets of one picture
UNIT = re.compile(r"controlnet (\d{1,2})", re.IGNORECASE)
HASH = re.compile(r" *\[[0-9a-fA-F]{6,64}\]$")
BALANCED, GUESS = "Balanced", "ControlNet is more important"  # control modes
NAMES = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
LABELS = ("weight", "guidance start", "guidance end")  # of these
DEFAULT = (1.0, 0.0, 1.0)
PROMPT = "My prompt is more important"
# Modules without a network → ``reference_mode``.
MODES = {
    "reference_only": "attention",
    "reference_adain": "adain",
    "reference_adain+attn": "attention+adain",
}
FIDELITY = {PROMPT.casefold(): 0.0, GUESS.casefold(): 1.0}  # of the control modes


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


def reference_unit(arguments: Mapping[str, Any]) -> str:
    """Return the settings of a reference picture as the extension writes them."""
    mode = arguments.get("reference_mode", "attention")
    module = next(module for module, its in MODES.items() if its == mode)
    fidelity = value_of(arguments.get("reference_fidelity", 0.5), 0)
    return (
        f"Module: {module}, Model: None, Weight: 1, Resize Mode: Just Resize, Threshold A: "
        f"{fidelity}, Guidance Start: 0, Guidance End: 1, Control Mode: {BALANCED}"
    )


def read_reference(label: str, unit: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Return the arguments of a reference picture, and what is not done here.

    Raises ValueError for a value that is not a number.
    """
    text = unit.get("threshold a", "0.5")
    try:
        fidelity = float(text[:40])
    except ValueError:
        raise ValueError(
            f"its {label} has the threshold a {text!r:.40}; expected a number"
        ) from None
    fidelity = FIDELITY.get(unit.get("control mode", "").casefold(), fidelity)
    values = zip(LABELS, numbers(label, unit), DEFAULT, strict=True)
    notes = [f"{label} {name} {value:g}" for name, value, usual in values if value != usual]
    mode = MODES[unit["module"].casefold()]
    return {"reference_mode": mode, "reference_fidelity": fidelity}, notes


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
        if unit.get("module", "").casefold() in MODES and "reference_mode" not in arguments:
            found, undone = read_reference(label, unit)
            arguments |= found
            notes += undone
            continue
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
