"""The models that LoRA files of other programs are for, by the names of their layers.

They are known to be refused by name: none of them is supported. Needs no PyTorch.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from ldm.checkpoints.backbones import find_backbone

# What is added to Stable Diffusion's U-Net, and text encoders: beside the networks of backbones.py.
PARTS = {
    "AnimateDiff": r"motion_modules",
    "Stable Video Diffusion": r"temporal_transformer_blocks|time_stack|temp_attentions",
    "the text encoder T5": r"SelfAttention|DenseReluDense|t5xxl|lora_te3_|text_encoder_3",
}


def other_model(stems: Iterable[str]) -> str | None:
    """Name the model that layers of these names are for; None if it is not known."""
    names = "\n".join(f"{stem}_".replace(".", "_") for stem in stems)
    for name, pattern in PARTS.items():
        if re.search(pattern, names):
            return name
    return find_backbone(names, lora=True)
