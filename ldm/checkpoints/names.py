"""Names in files that differ from our modules', as tools have written them over the years."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from ldm.checkpoints.deferred import Stored

# diffusers before 0.12 used these names in the attention of the VAE and of U-Nets without text
# (google's ddpm-* still have them); they are linear layers all the same.
OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def to_ours(tensors: Mapping[str, Stored], ours: Iterable[str]) -> dict[str, Stored]:
    """Rename the keys of a folder's weights to those in ``ours`` if they are known to differ.

    Handles old names of attention over pixels, the ``position_ids`` buffer of old text encoders,
    and text encoders that transformers ≥ 5.6 saved without the ``text_model.`` prefix.
    """
    ours = set(ours)
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        if key.endswith("embeddings.position_ids"):
            continue
        key = re.sub(
            r"(attentions\.\d+)\.(query|key|value|proj_attn)\.",
            lambda m: f"{m[1]}.{OLD_ATTENTION[m[2]]}.",
            key,
        )
        if key not in ours and f"text_model.{key}" in ours:
            key = f"text_model.{key}"
        renamed[key] = value
    return renamed
