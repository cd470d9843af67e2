"""Programs with little of their own: Draw Things, Easy Diffusion, plain JSON, and refusals."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.images.programs.json_settings import LABEL_OF, is_json, labelled, load, plain
from ldm.images.text_fields import COMMENT, PARAMETERS

DRAW_THINGS, EASY_DIFFUSION = "Draw Things", "Easy Diffusion"
LABELS = set(LABEL_OF.values())
MOST_OBJECTS = 20  # in which a prompt may stand
PLAIN = "a program that is not known here"
MIDJOURNEY = re.compile(r"\bJob ID: [0-9a-f-]{36}")
WITHOUT_EFFECT = ("num_outputs", "session_id", "request_id", "output_format", "output_quality")


def read_draw_things(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read the JSON that Draw Things writes into a comment: "c" is the prompt, "uc" the other."""
    text = fields.get(COMMENT, "")
    if not is_json(text) or '"uc"' not in text or '"c"' not in text:
        return None
    settings = load(text, DRAW_THINGS)
    found = labelled({"prompt": settings.pop("c", "")} | settings, ("v2", "profile"))
    strength = found.pop("strength", "1")
    if strength not in ("1", "1.0"):
        found["Denoising strength"] = strength
    return found


def read_easy_diffusion(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read Easy Diffusion's settings: a text chunk for each, or JSON in a comment."""
    keys = {plain(key): key for key in fields}
    if "prompt" in keys and {"numinferencesteps", "stablediffusionmodel"} & set(keys):
        known = {key: value for key, value in fields.items() if plain(key) in LABEL_OF}
        return labelled(known)
    text = fields.get(COMMENT, "")
    if is_json(text) and ("use_stable_diffusion_model" in text or "Stable Diffusion model" in text):
        return labelled(load(text, EASY_DIFFUSION), WITHOUT_EFFECT)
    return None


def read_plain(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read a JSON object with settings under usual names, where the web UI has its text.

    Raises ValueError for JSON without a prompt.
    """
    for name in (PARAMETERS, COMMENT):
        if not is_json(text := fields.get(name, "")):
            continue
        settings = load(text, PLAIN)
        inner = [value for value in settings.values() if isinstance(value, dict)]
        for each in (settings, *inner[:MOST_OBJECTS]):
            found = labelled(each)
            if "Prompt" in found and (name == PARAMETERS or len(LABELS & set(found)) > 1):
                return found
        if name == PARAMETERS or "prompt" in text:
            keys = ", ".join(list(settings)[:5])
            raise ValueError(f"its JSON is by {PLAIN} ({keys[:100]}); no prompt stands in it")
    return None


def refuse(fields: Mapping[str, str]) -> None:
    """Raise ValueError for a picture by a service whose model nobody has."""
    if MIDJOURNEY.search(fields.get("Description", "")[:10_000]):
        raise ValueError("it was drawn by Midjourney, whose settings no other program can draw")
