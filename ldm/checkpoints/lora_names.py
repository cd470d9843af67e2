"""The names in LoRA files: kohya's, peft's and diffusers' → our modules.

kohya joins a module's path with underscores, which cannot be undone by rule; so the paths of our
own modules are joined likewise and looked up.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from ldm.checkpoints.original import Rename

# What a tensor is to its module, by the end of its name.
ENDS = {
    "down": r"[._](?:lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.\w+)?)\.weight",
    "up": r"[._](?:lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.\w+)?)\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.(?:dora_scale|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)",
}
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
PARTS = ("text_encoder_2", "text_encoder", "unet")
# Attention processors of diffusers before 0.22, and wrappers of peft.
OLD_PATHS = (
    (r"\.processor\.to_out_lora$", ".to_out.0"),
    (r"\.processor\.(to_[qkv])_lora$", r".\1"),
)
Module = tuple[str, str]  # part of the pipeline, path of the module in it


@dataclass
class Factors:
    """The tensors of one module's update, and their names in the file."""

    names: list[str] = field(default_factory=list)
    down: Tensor | None = None
    up: Tensor | None = None
    mid: Tensor | None = None
    alpha: Tensor | None = None
    dora_scale: Tensor | None = None


def group(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Factors], list[str]]:
    """The tensors of each module, by its name in the file; and the names that are of no LoRA."""
    groups: dict[str, Factors] = {}
    unknown = []
    for name, value in tensors.items():
        for kind, end in ENDS.items():
            if found := re.search(f"{end}$", name):
                stem = name[: found.start()]
                # "….to_q_lora.down.weight": the underscore belongs to the module's old name.
                stem += "_lora" if found[0].startswith("_lora.") else ""
                factors = groups.setdefault(stem, Factors())
                factors.names.append(name)
                setattr(factors, kind, value)
                break
        else:
            unknown.append(name)
    return groups, unknown


class Directory:
    """Finds a module of a pipeline by what a LoRA file calls it."""

    def __init__(self, modules: Iterable[Module], original: Rename) -> None:
        """modules: all that a LoRA could change; original: the U-Net's names in single files."""
        self.modules = set(modules)
        self.joined: dict[tuple[str, str], Module] = {}
        for part, path in self.modules:
            self.joined[part, path.replace(".", "_")] = part, path
            if part == "unet":
                theirs = original(f"{path}.weight").name.removesuffix(".weight")
                self.joined[part, theirs.replace(".", "_")] = part, path

    def find(self, name: str) -> Module | None:
        """The module, or None where there is none."""
        for prefix, part in KOHYA.items():
            if name.startswith(prefix):
                return self.joined.get((part, name.removeprefix(prefix)))
        name = name.removeprefix("base_model.model.")
        part = next((p for p in PARTS if name.startswith(f"{p}.")), None)
        path = name.removeprefix(f"{part}.")
        for old, new in OLD_PATHS:
            path = re.sub(old, new, path)
        for candidate in ((part or "unet", path), (part, f"text_model.{path}")):
            if candidate in self.modules:
                return candidate
        return None
