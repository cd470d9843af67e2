"""NovelAI: the chunk `Comment` is a JSON object, beside `Software`, `Source` and `Description`."""

from __future__ import annotations

import re
from collections.abc import Mapping

from ldm.images.programs.json_settings import LABEL_OF, is_json, labelled, load, plain, scalar

NAME = "NovelAI"
# Its own settings that change the picture; what it writes beside them is not named.
CHANGES = ("sm", "sm_dyn", "dynamic_thresholding", "skip_cfg_above_sigma", "cfg_rescale")
WEIGHTS = re.compile(r"[{}]|\d::")  # it weighs words as {word} and 1.2::word::


def read(fields: Mapping[str, str]) -> dict[str, str] | None:
    """Read the settings in the texts of a file; None if NovelAI wrote none."""
    if not fields.get("Software", "").startswith(NAME):
        return None
    text = next((fields[n] for n in ("Comment", "UserComment") if is_json(fields.get(n, ""))), None)
    if text is None:
        raise ValueError(f"its settings, by {NAME}, are missing: it has no JSON in `Comment`")
    settings = load(text, NAME)
    if isinstance(inner := settings.get("Comment"), str):  # WebP: all chunks in one
        settings = load(inner, NAME)
    known = {k: v for k, v in settings.items() if plain(k) in LABEL_OF or k in CHANGES}
    found = labelled(known)
    found.setdefault("Prompt", fields.get("Description", ""))
    if source := fields.get("Source"):
        found["Model"] = source
    if str(settings.get("request_type", "")).startswith(("Img2Img", "Infill")):
        found["Denoising strength"] = scalar(settings.get("strength")) or "0.7"
    if WEIGHTS.search(found["Prompt"]) or WEIGHTS.search(found.get("Negative prompt", "")):
        found["weights of words"] = "as {word}"
    return found
