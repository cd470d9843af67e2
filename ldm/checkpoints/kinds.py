"""Kinds of weight files that people have, told by the names in them: no tensor is read.

Names are those of the tools that write such files: CompVis, SGM and diffusers for networks, the
authors' code for adapters. The first row that fits names a file, so that what contains another
kind's names, such as a SparseCtrl with its motion modules, stands before it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from typing import NamedTuple

from ldm.checkpoints.backbones import find_backbone

Shapes = Mapping[str, Sequence[int]]
MOST_NAMES, LONGEST = 50_000, 200  # that are looked at; the largest models have some ten thousand
UNSUPPORTED = "those are not supported"


class Kind(NamedTuple):
    """A kind of file."""

    name: str  # such as "ControlNet"
    advice: str  # what to do with one that was given as a model


# Adapters that may hold LoRA tensors themselves: rows of (name, pattern, what to do with it).
ADAPTERS = (
    ("PhotoMaker", r"^(?:id_encoder|lora_weights)\."),
    ("IP-Adapter", r"^(?:image_proj|ip_adapter)(?:\.|$)|\.to_[kv]_ip\."),
    ("Control-LoRA", r"^lora_controlnet$"),
    ("ControlNet-LLLite", r"^lllite_"),
    ("SparseCtrl", r"^(?=.*controlnet_cond_embedding)"),
)
OTHERS = (
    ("ControlNet", r"(?:^|\.)(?:control_model|controlnet_cond_embedding|controlnet_down_blocks"
                   r"|controlnet_mid_block|input_hint_block|zero_convs|controlnet_blocks)\."),
    ("motion module", r"(?:motion_modules\.\d+\.temporal_transformer|\.temporal_attentions)\."),
    ("T2I-Adapter", r"^(?:adapter\.)?body\.\d+\.(?:(?:resnets|body)\.\d+\.)?block[12]\."),
    ("T2I-Adapter of styles", r"^transformer_layes\.|^style_embedding$"),
    ("TAESD", r"^(?:taesd_)?(?:encoder|decoder)\.(?:layers\.)?\d+\.(?:conv\.\d+\.)?(?:weight|bias)$"
              r"|^\d+\.conv\.\d+\.weight$"),
    ("VAE", r"^(?:first_stage_model\.|vae\.)(?:encoder|decoder)\."
            r"|^(?:encoder|decoder)\.(?:conv_in|mid|mid_block|up|up_blocks)\."),
    ("upscaler (ESRGAN)", r"(?:^|\.)(?:RRDB_trunk|body|model\.1\.sub)\.\d+\.(?:RDB1|rdb1)\."),
    ("upscaler", r"^(?:params(?:_ema)?\.)?(?:conv_first\.|layers\.\d+\.residual_group\.)"
                 r"|^body\.\d+\.weight$"),
    ("safety checker", r"(?:^|\.)(?:concept_embeds|special_care_embeds)$"),
    ("CLIP image encoder", r"(?:^|\.)(?:vision_model|visual)\."),
    ("T5 text encoder", r"(?:^|\.)encoder\.block\.\d+\.layer\.0\.SelfAttention\.|^enc\.blk\.\d+\."),
    ("CLIP text encoder", r"(?:^|\.)(?:text_model\.)?encoder\.layers\.\d+\.self_attn\."
                          r"|(?:^|\.)transformer\.resblocks\.\d+\."),
    ("U-Net", r"^(?:input_blocks|output_blocks|middle_block|down_blocks|up_blocks|mid_block)\."
              r"|^model\.diffusion_model\.(?:input|output)_blocks\."),
)  # fmt: skip
OPTIONS = {  # that take a kind
    **dict.fromkeys(("ControlNet", "Control-LoRA", "ControlNet-LLLite"), "--controlnet FILE"),
    "T2I-Adapter": "--t2i-adapter FILE",
    "IP-Adapter": "--ip-adapter FILE",
    "CLIP image encoder": "--image-encoder FILE",
    "VAE": "--vae FILE",
    "TAESD": "--vae FILE, or --preview-vae FILE",
    "CLIP text encoder": "--text-encoder FILE",
}
ADVICE = {  # for what was given as a model
    **{kind: f"give it beside one: {option}" for kind, option in OPTIONS.items()},
    "CLIP image encoder": "give it beside an IP-Adapter: --image-encoder FILE",
    "U-Net": "give it with its other parts: a folder with model_index.json, or a whole single file",
    "CLIP text encoder": "give it beside one that lacks it: --text-encoder FILE",
}


def listed(shapes: Iterable[str]) -> str:
    """Join names to lines, so that a pattern is looked for in all at once."""
    return "\n".join(name[:LONGEST] for name in islice(shapes, MOST_NAMES))


def find_adapter(names: str) -> Kind | None:
    """Name an adapter that is no LoRA, although it may hold some; names: as of ``listed``."""
    for name, pattern in ADAPTERS:
        if not re.search(pattern, names, re.MULTILINE):
            continue
        if name == "SparseCtrl" and "motion_modules." not in names:
            continue
        return Kind(name, ADVICE.get(name, UNSUPPORTED))
    return None


def find_other(names: str) -> Kind | None:
    """Name a part, an adapter that is no LoRA, or another model; names: as of ``listed``."""
    backbone = find_backbone(names)
    if backbone and re.search(r"^model\.diffusion_model\.", names, re.MULTILINE):
        return Kind(backbone, UNSUPPORTED)  # whole, with a VAE that would be found below
    for name, pattern in OTHERS:
        if name == "U-Net" and backbone:  # Stable Cascade's has its names
            break
        if re.search(pattern, names, re.MULTILINE):
            return Kind(name, ADVICE.get(name, UNSUPPORTED))
    return Kind(backbone, UNSUPPORTED) if backbone else None


def of_other_option(shapes: Iterable[str]) -> tuple[str, str] | None:
    """Return what a file is, and its option, if it is a model or a part that some option takes."""
    names = listed(shapes)
    if re.search(r"^model\.diffusion_model\.", names, re.MULTILINE):
        return "a model", "--model FILE"
    kind = find_adapter(names) or find_other(names)
    option = OPTIONS.get(kind.name) if kind else None
    return (article(kind.name), option) if kind and option else None


def is_embedding(shapes: Shapes) -> bool:
    """Whether the tensors are the vectors of one or a few words, as in a textual inversion."""
    if {"emb_params", "clip_l", "clip_g", "clip_l_out", "string_to_param"} & set(shapes):
        return True
    return 0 < len(shapes) <= 2 and all(
        0 < len(shape) <= 2 and not re.search(r"\.(weight|bias)$", name)
        for name, shape in shapes.items()
    )


def article(name: str) -> str:
    """Write a kind with its article: "an IP-Adapter"."""
    return f"{'an' if name[0] in 'AEIOaeiou' else 'a'} {name}"
