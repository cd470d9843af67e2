"""What names a control picture: a preprocessor, its parameters and a file, in one word.

NAME[,KEY=VALUE]…:FILE        canny:car.png    canny,low=50,high=120:C:\\car.png
"""

from __future__ import annotations

import re
from pathlib import Path

from ldm.control.preprocessed import ControlSource
from ldm.control.preprocessors import PREPROCESSORS
from ldm.control.preprocessors.parameters import parse_parameter
from ldm.errors import ArgumentError, did_you_mean

# Maps that only a network can make, by the names of ControlNet 1.1's preprocessors.
BY_NETWORKS = {
    "depth", "dw_openpose", "dwpose", "hed", "leres", "mediapipe_face", "midas", "mlsd", "normal",
    "normalbae", "openpose", "pidinet", "pidi", "pose", "sam", "seg", "segmentation", "shuffle",
    "teed", "zoe",
}  # fmt: skip
# In place of a network's: by the rough likeness of what they draw.
SIMILAR = {"hed": "softedge", "pidinet": "softedge", "pidi": "softedge", "teed": "softedge"}
SPELLINGS = {name: name for name in PREPROCESSORS} | {
    "gray": "grey", "edges": "canny", "soft_edge": "softedge", "line_art": "lineart",
    "sketch": "scribble", "inpainting": "inpaint", "blur": "tile",
}  # fmt: skip


def read_control(text: str) -> ControlSource:
    """Read "NAME[,KEY=VALUE]…:FILE". The first colon ends the name: the file may have others.

    Raises ArgumentError for no name or file, for what is unknown (with the nearest names), and for
    parameters out of range.
    """
    head, colon, file = text.partition(":")
    name, *items = (part.strip() for part in head.split(","))
    if not colon and name in PREPROCESSORS:
        raise ArgumentError(f"{text!r:.80} names no file; write {head}:FILE")
    if not colon or re.fullmatch(r"[A-Za-z]?|.*[/\\].*", name):  # as in C:\car.png, ./a:b.png
        example = (text if name else file).strip() or "FILE"
        raise ArgumentError(
            f"{text!r:.80} names no preprocessor; write NAME:FILE, such as canny:{example:.80}"
        )
    for address in (text, file):
        if re.match(r"[A-Za-z]\w+://", address):
            raise ArgumentError(
                f"{address!r:.80} is an address, and no network is used; download it, and give the "
                "file"
            )
    if name not in PREPROCESSORS:
        raise ArgumentError(f"unknown preprocessor {name!r:.60}; {advice(name)}")
    if not file.strip():
        raise ArgumentError(f"{text!r:.80} names no file; write {head}:FILE")
    return ControlSource(name, Path(file), read_parameters(name, items))


def read_parameters(name: str, items: list[str]) -> dict[str, int | float]:
    """Read "KEY=VALUE" of each item, for the preprocessor ``name``."""
    values: dict[str, int | float] = {}
    for item in items:
        key, equals, value = (part.strip() for part in item.partition("="))
        if not equals:
            raise ArgumentError(f"{name}: {item!r:.60} is no parameter; write KEY=VALUE")
        if key in values:
            raise ArgumentError(f"{name}: {key} is given twice")
        values[key] = parse_parameter(PREPROCESSORS[name], key, value)
    return values


def advice(name: str) -> str:
    """Return what to use in place of an unknown preprocessor."""
    lower = name.lower()
    base = next((one for one in (lower, lower.split("_")[0]) if one in BY_NETWORKS), None)
    if base:
        other = f", or use {SIMILAR[base]}" if base in SIMILAR else ""
        return f"only a network can make it; give the map as the control image{other}"
    return did_you_mean(lower, SPELLINGS) or f"expected one of {', '.join(PREPROCESSORS)}"
