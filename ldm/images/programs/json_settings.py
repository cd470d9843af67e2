"""Settings that a program writes as a JSON object, one key for each.

The programs call the same things by much the same names: one table reads them all.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from typing import Any

from ldm.images.metadata import names_settings

LARGEST = 2**23  # characters of JSON: graphs of ComfyUI can hold pictures
LONGEST_VALUE = 200  # characters of a value that is only shown

TAIL = 2**16  # characters, in which the settings stand behind a prompt that is JSON
OFF = ("", "false", "none", "null")

# A1111's name → other programs' keys, without case and signs.
KEYS: dict[str, tuple[str, ...]] = {
    "Prompt": ("prompt", "positiveprompt", "positive"),
    "Negative prompt": ("negativeprompt", "negative", "uc"),
    "Steps": ("steps", "numinferencesteps", "inferencesteps"),
    "CFG scale": ("cfgscale", "guidancescale", "cfg", "scale"),
    "Seed": ("seed", "noiseseed"),
    "Sampler": ("sampler", "samplername", "samplingmethod"),
    "Schedule type": ("scheduler", "scheduletype", "noiseschedule", "schedule"),
    "Clip skip": ("clipskip",),
    "Denoising strength": ("denoisingstrength",),
    "Model": (
        *("model", "basemodel", "modelname", "modelweights", "usestablediffusionmodel"),
        *("stablediffusionmodel", "basemodelname", "ckptname", "sdmodelname"),
    ),
    "VAE": ("vae", "vaename", "usevaemodel", "vaemodel"),
    "Width": ("width",),
    "Height": ("height",),
    "Size": ("size",),
    "RNG": ("rng", "randdevice"),
}
LABEL_OF = {key: label for label, keys in KEYS.items() for key in keys}


def is_json(text: str) -> bool:
    """Whether a text is JSON, whole or broken, and not the web UI's, whose prompt may be JSON."""
    begins = re.match(r"\s*(\{\s*[\"}]|\[\s*\{\s*\"|(\[\s*){4})", text)
    return begins is not None and not names_settings(text[-TAIL:])


def load(text: str, program: str) -> dict[str, Any]:
    """Read a JSON object. Raises ValueError, with the program's name."""
    if len(text) > LARGEST:
        raise ValueError(f"its JSON, by {program}, is {len(text)} characters; at most {LARGEST}")
    try:
        found = json.loads(text, strict=False)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "it is nested too deeply"
        raise ValueError(f"its JSON, by {program}, is broken: {reason}") from None
    if not isinstance(found, dict):
        raise ValueError(f"its JSON, by {program}, is a {type(found).__name__}, not an object")
    return found


def labelled(settings: Mapping[str, Any], ignore: Iterable[str] = ()) -> dict[str, str]:
    """Give settings A1111's names; those in ``ignore`` and those that are off are left out."""
    found: dict[str, str] = {}
    ignored = set(ignore)
    for key, value in settings.items():
        text = scalar(value)
        label = LABEL_OF.get(plain(key), key)
        if label in KEYS and (text is None or (label != "Prompt" and text.casefold() in OFF)):
            continue
        if label == key and (key in ignored or _is_off(value)):
            continue
        found.setdefault(label, shown(value) if text is None else text)
    return found


def scalar(value: Any) -> str | None:
    """Return a text or number as text; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    if isinstance(value, float) and value.is_integer() and math.isfinite(value):
        return str(int(value)) if abs(value) < 2**53 else repr(value)
    try:
        return str(value)
    except ValueError:  # a whole number of more than 4,300 digits
        return "too many digits"


def shown(value: Any) -> str:
    """Return a short text of any value, however deeply it is nested."""
    try:
        return json.dumps(value, ensure_ascii=False)[:LONGEST_VALUE]
    except (ValueError, RecursionError):
        return type(value).__name__


def name_of(value: Any) -> str | None:
    """Return the name of a model that is given as a text or an object."""
    if isinstance(value, Mapping):
        names = ("model_name", "name", "key")
        value = next((value[name] for name in names if name in value), None)
    return value if isinstance(value, str) and value else None


def plain(key: str) -> str:
    """Strip case, spaces and signs."""
    return "".join(letter for letter in key[:100].casefold() if letter.isalnum())


def lora(name: object, weight: object) -> dict[str, str]:
    """Return the setting that names a LoRA, and its weight."""
    return {f"LoRA {str(name)[:LONGEST_VALUE]}": scalar(weight) or "1"}


def _is_off(value: Any) -> bool:
    return value in (None, False, "", "None", "none", 0) or value in ([], {})
