"""Fooocus, Fooocus-MRE and RuinedFooocus: a JSON object where the web UI has its text.

Fooocus can also write the web UI's text itself.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from ldm.images.programs.json_settings import is_json, labelled, load, lora
from ldm.images.text_fields import COMMENT, PARAMETERS

NAME = "Fooocus"
WITHOUT_EFFECT = (
    *("metadata_scheme", "version", "software", "created_by", "base_model_hash"),
    *("refiner_model_hash", "full_prompt", "full_negative_prompt", "prompt_expansion"),
    *("performance", "refiner_switch", "refiner_swap_method", "loras", "resolution"),
    *("base_model_hash", "real_prompt", "real_negative_prompt", "Software"),
)
PAIR = re.compile(r"\D*(\d{1,6})\D+(\d{1,6})\D*")


def read(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read the settings in the texts of a file; None if Fooocus wrote none."""
    for name in (PARAMETERS, COMMENT, "Comment"):
        text = fields.get(name, "")
        named = "ooocus" in text or '"full_prompt"' in text
        if named and '"class_type"' not in text and is_json(text):
            return _labels(load(text, NAME))
    return None


def _labels(settings: dict[str, Any]) -> dict[str, str]:
    lora_keys = [key for key in settings if re.fullmatch(r"lora_combined_\d+|LoRA \d+", key)]
    found = {"RNG": "CPU"} | labelled(
        {key: value for key, value in settings.items() if key not in lora_keys}, WITHOUT_EFFECT
    )
    size = settings.get("resolution", settings.get("Resolution"))
    if isinstance(size, str | list) and (pair := PAIR.fullmatch(str(size)[:60])):
        found["Size"] = f"{pair[1]}x{pair[2]}"
        found.pop("Resolution", None)
    if found.get("VAE", "").startswith("Default"):
        del found["VAE"]
    loras = settings.get("loras")
    for row in loras if isinstance(loras, list) else []:
        if isinstance(row, list) and len(row) >= 2:
            found |= lora(row[0], row[1])
    for key in lora_keys:
        name, _, weight = str(settings[key]).rpartition(" : ")
        found |= lora(name, weight)
    return found
