"""The layers in LoRA files → our modules, by the prefixes and paths of all tools that write them.

kohya joins a module's path with underscores, which cannot be undone by rule; so the paths of our
own modules are joined likewise and looked up. Needs no PyTorch, so that ``ldm-info`` starts fast.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from ldm.checkpoints.lora_kinds import Factors, S, input_width

if TYPE_CHECKING:
    from ldm.checkpoints.original import Rename

# Before paths joined by underscores, the longest first: kohya's, LyCORIS' wrapper's.
JOINED = {
    "lora_unet_": ("unet",),
    "lora_te_": ("text_encoder", "text_encoder_2"),
    "lora_te1_": ("text_encoder",),
    "lora_te2_": ("text_encoder_2",),
    "lycoris_": ("unet", "text_encoder", "text_encoder_2"),
    "diffusion_model_": ("unet",),
}
# Before paths with dots: ComfyUI's, OneTrainer's, diffusers'; peft has none of its own.
DOTTED = {
    "model.diffusion_model.": ("unet",),
    "diffusion_model.": ("unet",),
    "unet.": ("unet",),
    "lora_unet.": ("unet",),
    "text_encoders.clip_l.transformer.": ("text_encoder",),
    "text_encoders.clip_g.transformer.": ("text_encoder_2",),
    "text_encoders.clip_h.transformer.": ("text_encoder",),
    "text_encoders.clip_l.": ("text_encoder",),
    "text_encoders.clip_g.": ("text_encoder_2",),
    "clip_l.transformer.": ("text_encoder",),
    "clip_g.transformer.": ("text_encoder_2",),
    "clip_h.transformer.": ("text_encoder",),
    "text_encoder_2.": ("text_encoder_2",),
    "text_encoder.": ("text_encoder", "text_encoder_2"),
    "lora_te.": ("text_encoder",),
    "lora_te1.": ("text_encoder",),
    "lora_te2.": ("text_encoder_2",),
}
ADAPTED_PARTS = ("unet", "text_encoder", "text_encoder_2")
TEXT = re.compile(r"(?:base_model\.model\.)?(?:lora_te|te\d?\.|text_encoder|clip_[glh]\.|t5xxl)")
# Attention processors of diffusers before 0.22, in U-Nets and in text encoders.
OLD_PATHS = (
    (r"\.processor\.", "."),
    (r"\.self_attn\.to_([qkv]|out)_lora$", r".self_attn.\1_proj"),
    (r"\.to_out_lora$", ".to_out.0"),
    (r"\.(to_[qkv])_lora$", r".\1"),
)
# Keys and values of the text: the width of their inputs identifies a family.
CROSS_ATTENTION = re.compile(r"attn2[._](?:processor\.)?to_[kv](?:_lora)?$")
ORIGINAL = re.compile(r"(?:input|output)_blocks|middle_block")
Module = tuple[str, str]  # part of the pipeline, path of the module in it


def text_width(groups: Mapping[str, Factors[S]]) -> int | None:
    """Return the text width of a LoRA's U-Net; None if the LoRA changes no layer that reads it."""
    for stem, factors in groups.items():
        if (
            CROSS_ATTENTION.search(stem)
            and not TEXT.match(stem)
            and (width := input_width(factors))
        ):
            return width
    return None


class Directory:
    """The modules of a pipeline by their names in LoRA files."""

    def __init__(self, modules: Iterable[Module], original: Rename) -> None:
        """Index all modules that a LoRA could change.

        original: the U-Net's names in single files.
        """
        self.modules = set(modules)
        self.joined: dict[Module, Module] = {}
        self.dotted: dict[Module, Module] = {}
        for module in sorted(self.modules):
            part, path = module
            names = {path}
            if part == "unet":
                names.add(original(f"{path}.weight").name.removesuffix(".weight"))
            else:  # transformers ≥ 5.6 has dropped that
                names.add(path.removeprefix("text_model."))
            for name in names:
                self.dotted[part, name] = module
                self.joined[part, name.replace(".", "_")] = module

    def find(self, name: str) -> list[Module]:
        """Return the modules that a name in a file may mean, the likeliest first; often one."""
        parts: tuple[str, ...] = ADAPTED_PARTS
        for prefix, owners in JOINED.items():
            if name.startswith(prefix):
                path = name.removeprefix(prefix)
                return self.look_up(self.joined, owners, path)
        name = name.removeprefix("base_model.model.")
        for prefix, owners in DOTTED.items():
            if name.startswith(prefix):
                name, parts = name.removeprefix(prefix), owners
                break
        for old, new in OLD_PATHS:
            name = re.sub(old, new, name)
        return self.look_up(self.dotted, parts, name)

    @staticmethod
    def look_up(table: Mapping[Module, Module], parts: Iterable[str], path: str) -> list[Module]:
        """Return the modules of a path in any of the parts."""
        return [table[part, path] for part in parts if (part, path) in table]
