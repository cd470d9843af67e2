"""Descriptions of IP-Adapters: what they make of a picture, and how they are used."""

from __future__ import annotations

import re

from ldm.checkpoints.family import FAMILIES, read_family
from ldm.checkpoints.kinds import Shapes
from ldm.checkpoints.notes import Rows

USE = ("use", "--ip-adapter FILE --ip-adapter-image PICTURE")
KEY = re.compile(r"ip_adapter\.\d+\.to_k_ip\.weight")
FACE = re.compile(r"ip_adapter\.(?:\d+\.)?to_\w+_lora\.|image_proj\.perceiver_resampler\.")


def ip_adapter_rows(shapes: Shapes) -> Rows:
    """Return what model an IP-Adapter's file is for and what it reads; [] for unknown layers."""
    proj = {n.removeprefix("image_proj."): tuple(s) for n, s in shapes.items() if "image_" in n}
    keys = [tuple(shape) for name, shape in shapes.items() if KEY.fullmatch(name)]
    if any(FACE.match(name) for name in shapes) or {"norm.weight", "proj.0.weight"} <= set(proj):
        return [("form", "FaceID: it needs a face recogniser, and is not supported")]
    if not keys or len(keys[0]) != 2:
        return []
    width = keys[0][1]
    rows: Rows = []
    if width in FAMILIES:
        rows.append(("for", read_family(FAMILIES[width]).name))
    try:
        if "proj.weight" in proj:
            tokens = proj["proj.weight"][0] // proj["norm.weight"][0]
            reads = f"an image encoder's embedding of width {proj['proj.weight'][1]}"
            rows.append(("form", f"base, {tokens} tokens for a picture"))
        elif "proj.3.weight" in proj:
            reads = f"an image encoder's states of width {proj['proj.0.weight'][1]}"
            rows.append(("form", "full, a token for each patch"))
        else:
            reads = f"an image encoder's states of width {proj['proj_in.weight'][1]}"
            rows.append(("form", f"plus, {proj['latents'][1]} tokens for a picture"))
    except (KeyError, IndexError, ZeroDivisionError):
        return rows
    return [*rows, ("reads", reads), USE]
