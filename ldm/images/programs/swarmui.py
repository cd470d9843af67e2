"""SwarmUI: a JSON object `{"sui_image_params": {…}}` where the web UI has its text.

Format: docs/Image Metadata Format.md of SwarmUI. Numbers may be texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import zip_longest
from typing import Any

from ldm.images.programs.json_settings import labelled, load, lora, scalar
from ldm.images.text_fields import COMMENT, PARAMETERS

NAME, ROOT = "SwarmUI", "sui_image_params"
WITHOUT_EFFECT = (
    *("images", "aspectratio", "imageformat", "automaticvae", "swarm_version", "batchsize"),
    *("donotsave", "sidelength", "resolution"),
)
OTHER = ("initimage", "initimagecreativity", "loras", "loraweights", "clipstopatlayer")


def read(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read the settings in the texts of a file; None if SwarmUI wrote none."""
    text = next(
        (fields[n] for n in (PARAMETERS, COMMENT) if f'"{ROOT}"' in fields.get(n, "")), None
    )
    if text is None:
        return None
    settings = load(text, NAME).get(ROOT)
    if not isinstance(settings, dict):
        raise ValueError(f"its {ROOT}, by {NAME}, is no object")
    settings = {
        key.removeprefix("comfyui").removeprefix("autowebui"): value
        for key, value in settings.items()
    }
    found = {"RNG": "CPU"} | labelled(
        {key: value for key, value in settings.items() if key not in OTHER}, WITHOUT_EFFECT
    )
    if settings.get("initimage") or "initimagecreativity" in settings:
        found["Denoising strength"] = scalar(settings.get("initimagecreativity")) or "0.6"
    names, weights = (_list(settings.get(key)) for key in ("loras", "loraweights"))
    for name, weight in zip_longest(names, weights[: len(names)], fillvalue=1):
        found |= lora(name, weight)
    layer = str(settings.get("clipstopatlayer", ""))
    if layer.removeprefix("-").isdecimal():
        found["Clip skip"] = layer.removeprefix("-")
    return found


def _list(value: Any) -> list[Any]:
    """Return a list that may be written with commas."""
    if isinstance(value, str):
        return [part.strip() for part in value.split(",") if part.strip()]
    return value if isinstance(value, list) else []
