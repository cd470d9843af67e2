"""What steers by pictures in A1111's text, as its extension sd-webui-controlnet writes it.

ControlNets, T2I-Adapters and reference pictures are units; a unit is a T2I-Adapter if its model is
named so, a reference picture by its module.
ControlNet 0: "Module: canny, Model: control_v11p_sd15_canny [d14c016b], Weight: 1, …"
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER, PictureReader

MOST = 16  # units of one picture
UNIT = re.compile(r"controlnet (\d{1,2})", re.IGNORECASE)
HASH = re.compile(r" *\[[0-9a-fA-F]{6,64}\]$")
IP_MODULE = "ip-adapter-auto"
BALANCED, GUESS = "Balanced", "ControlNet is more important"  # control modes
NAMES = ("controlnet_conditioning_scale", "control_guidance_start", "control_guidance_end")
ADAPTER_NAMES = ("adapter_conditioning_scale", "", "adapter_conditioning_factor")  # no start
PER_NETWORK = {*NAMES, *ADAPTER_NAMES} - {""}  # arguments with a value for each, or one for all
IS_ADAPTER = re.compile(r"t2i[-_ ]?adapter", re.IGNORECASE)
MARK = "t2iadapter_"  # before the name of a T2I-Adapter that does not say so
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
PROMPT = "My prompt is more important"
# Modules without a network → ``reference_mode``.
MODES = {
    "reference_only": "attention",
    "reference_adain": "adain",
    "reference_adain+attn": "attention+adain",
}
FIDELITY = {PROMPT.casefold(): 0.0, GUESS.casefold(): 1.0}  # of the control modes


def control_labels(
    arguments: Mapping[str, Any],
    controlnets: tuple[str, ...],
    t2i_adapters: tuple[str, ...] = (),
    preprocessors: tuple[str, ...] = (),
) -> dict[str, str]:
    """Return the settings of ControlNets and T2I-Adapters of these names as units.

    preprocessors: "canny,low=50" of each ControlNet's picture; () if there are none.
    """
    mode = GUESS if arguments.get("guess_mode") else BALANCED
    units = [(name, NAMES, i, mode) for i, name in enumerate(controlnets)]
    for i, name in enumerate(t2i_adapters):
        marked = name if IS_ADAPTER.search(name) else f"{MARK}{name}"
        units.append((marked, ADAPTER_NAMES, i, BALANCED))
    found = {}
    for number, (name, names, index, own_mode) in enumerate(units):
        weight, start, end = (
            value_of(arguments.get(argument, default), index)
            for argument, default in zip(names, DEFAULT, strict=True)
        )
        module, thresholds = module_of("".join(preprocessors[number : number + 1]))
        found[f"ControlNet {number}"] = (
            f"Module: {module}, Model: {name.replace(',', ' ')}, Weight: {weight}, Resize Mode: "
            f"Just Resize{thresholds}, Guidance Start: {start}, Guidance End: {end}, Control Mode: "
            f"{own_mode}"
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
    fidelity = number(f"{label} has the threshold a", text)
    fidelity = FIDELITY.get(unit.get("control mode", "").casefold(), fidelity)
    values = zip(LABELS, numbers(label, unit), DEFAULT, strict=True)
    notes = [f"{label} {name} {value:g}" for name, value, usual in values if value != usual]
    mode = MODES[unit["module"].casefold()]
    return {"reference_mode": mode, "reference_fidelity": fidelity}, notes


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
    """Write the number of one network, of one number for all, a list, or its text."""
    if isinstance(value, str):
        value = [float(part) for part in value.split(",")]
    if isinstance(value, list | tuple):
        value = value[index] if len(value) > 1 else value[0]
    return repr(float(value)).removesuffix(".0")


@dataclass
class Units:
    """What the units of a picture ask for.

    Attributes:
        arguments: of the request.
        controlnets, t2i_adapters: names of the networks.
        preprocessors: of each ControlNet's picture, such as "canny,low=50"; () if there are none.
        notes: what is not done here.
    """

    arguments: dict[str, Any] = field(default_factory=dict)
    controlnets: tuple[str, ...] = ()
    preprocessors: tuple[str, ...] = ()
    t2i_adapters: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)

    @property
    def images(self) -> dict[str, str]:
        """Pictures that were given, without their digests."""
        kinds = ((CONTROLNET, self.controlnets), (T2I_ADAPTER, self.t2i_adapters))
        found = {kind.image: "" for kind, names in kinds if names}
        return found | ({"reference_image": ""} if "reference_mode" in self.arguments else {})


def take_units(settings: dict[str, str]) -> Units:
    """Take the units out of a picture's settings.

    Raises ValueError for a value that is not a number.
    """
    labels = [label for label in settings if UNIT.fullmatch(label)][:MOST]
    found, modules = Units(), list[str]()
    rows: dict[PictureReader, list[list[float]]] = {CONTROLNET: [], T2I_ADAPTER: []}
    for label in sorted(labels, key=lambda label: int(label.split()[1])):
        unit = read_unit(settings.pop(label))
        if unit.get("module", "").casefold() in MODES and "reference_mode" not in found.arguments:
            arguments, undone = read_reference(label, unit)
            found.arguments |= arguments
            found.notes += undone
            continue
        name = HASH.sub("", unit.get("model", "")) or label
        kind = T2I_ADAPTER if IS_ADAPTER.search(name) else CONTROLNET
        rows[kind].append(numbers(label, unit))
        mode = unit.get("control mode", BALANCED)
        if kind == CONTROLNET:
            found.controlnets += (name,)
            if mode.casefold() == GUESS.casefold():
                found.arguments["guess_mode"] = True
        else:
            found.t2i_adapters += (name,)
            if (start := rows[kind][-1][1]) > 0:
                found.notes.append(f"{label} Guidance Start {start:g}")
        if "prompt is more" in mode or (kind == T2I_ADAPTER and mode != BALANCED):
            found.notes.append(f"{label} Control Mode {mode}")
        module = preprocessor_of(unit)
        if kind == CONTROLNET:
            modules.append(module or "")
        if module is None or (module and kind == T2I_ADAPTER):
            theirs = unit.get("module", unit.get("preprocessor"))
            found.notes.append(f"{label} Module {theirs} (give the picture that it made)")
        elif module and "processor res" in unit and unit.get("pixel perfect") != "True":
            found.notes.append(f"{label} Processor Res {unit['processor res']}")
    found.preprocessors = tuple(modules) if any(modules) else ()
    for kind, names in ((CONTROLNET, NAMES), (T2I_ADAPTER, ADAPTER_NAMES)):
        columns = zip(names, DEFAULT, zip(*rows[kind], strict=True), strict=False)
        for argument, default, values in columns:
            if argument and any(value != default for value in values):
                found.arguments[argument] = values if len(values) > 1 else values[0]
    return found


def read_unit(text: str) -> dict[str, str]:
    """Read the "Name: value" pairs of one unit; names in lower case."""
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
