"""The names in LoRA files: kohya's, peft's and diffusers' → our modules.

kohya joins a module's path with underscores, which cannot be undone by rule; so the paths of our
own modules are joined likewise and looked up. Needs no PyTorch, so that ``ldm-info`` starts fast.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

if TYPE_CHECKING:
    from ldm.checkpoints.original import Rename

# What a tensor is to its module, by the end of its name.
TENSOR_ENDS = {
    "down": r"[._](?:lora_down|lora\.down|lora_linear_layer\.down|lora_A(?:\.\w+)?)\.weight",
    "up": r"[._](?:lora_up|lora\.up|lora_linear_layer\.up|lora_B(?:\.\w+)?)\.weight",
    "mid": r"\.lora_mid\.weight",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": r"\.lora_magnitude_vector(?:\.\w+)?(?:\.weight)?",
}
# Tensors of other kinds of adapters (LyCORIS' and peft's names), which must not be used in part.
UNSUPPORTED = {
    "LoHa": r"\.hada_(?:w[12]_[ab]|t[12])(?:\.\w+)?",
    "LoKr": r"\.lokr_(?:w[12](?:_[ab])?|t[12])(?:\.\w+)?",
    "OFT": r"\.b?oft_(?:blocks|diag|[rRsS])(?:\.\w+)*",
    "GLoRA": r"\.[ab][12]\.weight",
    "IA3": r"\.(?:on_input|ia3_l(?:\.\w+)?)",
    "full-weight": r"\.(?:diff|diff_b|w_norm|b_norm)",
    "bias": r"\.(?:lora_up|lora_B(?:\.\w+)?)\.bias",
}
KOHYA = {
    "lora_unet_": "unet",
    "lora_te_": "text_encoder",
    "lora_te1_": "text_encoder",
    "lora_te2_": "text_encoder_2",
}
ADAPTED_PARTS = ("text_encoder_2", "text_encoder", "unet")
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
ADAPTER_METADATA = "lora_adapter_metadata"  # diffusers ≥ 0.34 writes peft's LoraConfig there
Module = tuple[str, str]  # part of the pipeline, path of the module in it


class Shaped(Protocol):
    """A tensor, or its entry in a header."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along all axes."""


T = TypeVar("T")
S = TypeVar("S", bound=Shaped)


@dataclass
class Factors(Generic[T]):
    """The tensors of one module's update, and their names in the file."""

    names: dict[str, str] = field(default_factory=dict)  # by kind
    down: T | None = None
    up: T | None = None
    mid: T | None = None
    alpha: T | float | None = None
    dora_scale: T | None = None  # LyCORIS': the lengths of rows (n, 1, …), or of columns (1, n, …)
    magnitude: T | None = None  # peft's: the lengths of rows, however shaped


def group(tensors: Mapping[str, T]) -> tuple[dict[str, Factors[T]], list[str]]:
    """Group tensors by their modules' names in the file; also return names that are no LoRA's."""
    names: dict[str, dict[str, str]] = {}  # of each module, by kind
    factors: dict[str, dict[str, T]] = {}
    unknown = []
    for name, value in tensors.items():
        for kind, end in TENSOR_ENDS.items():
            if found := re.search(f"{end}$", name):
                stem = name[: found.start()]
                # "….to_q_lora.down.weight": the underscore belongs to the module's old name.
                stem += "_lora" if found[0].startswith("_lora.") else ""
                if kind in names.setdefault(stem, {}):  # one of several adapters in a file
                    unknown.append(name)
                else:
                    names[stem][kind] = name
                    factors.setdefault(stem, {})[kind] = value
                break
        else:
            unknown.append(name)
    return {stem: Factors(names[stem], **factors[stem]) for stem in names}, unknown


def unsupported(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Find names of other kinds of adapters: for each kind, the names and their modules'."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        for kind, end in UNSUPPORTED.items():
            if place := re.search(f"{end}$", name):
                found.setdefault(kind, {})[name] = name[: place.start()]
                break
    return found


def text_width(groups: Mapping[str, Factors[S]]) -> int | None:
    """Return the text width of a LoRA's U-Net; None if the LoRA changes no layer that reads it."""
    for stem, factors in groups.items():
        shape = () if factors.down is None else factors.down.shape
        if CROSS_ATTENTION.search(stem) and len(shape) > 1:
            return shape[1]
    return None


class Alphas:
    """The α that diffusers keeps in a file's metadata instead of tensors: peft's LoraConfig."""

    def __init__(self, metadata: Mapping[str, str]) -> None:
        """Read a file's metadata. Raises ValueError for adapter settings that cannot be read."""
        try:
            self.settings = json.loads(metadata.get(ADAPTER_METADATA) or "{}")
            self.settings.keys()
        except (ValueError, AttributeError, RecursionError):
            raise ValueError(f"its {ADAPTER_METADATA} is no JSON object") from None

    def find(self, module: Module, rank: int) -> float | None:
        """Return α of a module, so that α/rank is its scale; None if the file does not state it."""
        part, path = module

        def setting(name: str) -> object:
            # A U-Net that was saved alone has settings without its name.
            return self.settings.get(f"{part}.{name}", self.settings.get(name))

        alpha = setting("lora_alpha")
        patterns = setting("alpha_pattern")
        for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
            # peft takes a regular expression; those in files are the ends of paths.
            if f".{path}".endswith(f".{pattern}"):
                alpha = value
                break
        if alpha is None:
            return None
        if not isinstance(alpha, int | float) or not math.isfinite(alpha):
            raise ValueError(f"its {ADAPTER_METADATA} has lora_alpha {alpha!r}, not a number")
        return alpha * math.sqrt(rank) if setting("use_rslora") else alpha


class Directory:
    """The modules of a pipeline by their names in LoRA files."""

    def __init__(self, modules: Iterable[Module], original: Rename) -> None:
        """Index all modules that a LoRA could change.

        original: the U-Net's names in single files.
        """
        self.modules = set(modules)
        self.joined: dict[tuple[str, str], Module] = {}
        for part, path in self.modules:
            self.joined[part, path.replace(".", "_")] = part, path
            if part == "unet":
                theirs = original(f"{path}.weight").name.removesuffix(".weight")
                self.joined[part, theirs.replace(".", "_")] = part, path

    def find(self, name: str) -> Module | None:
        """Return the module, or None if there is none."""
        for prefix, owner in KOHYA.items():
            if name.startswith(prefix):
                return self.joined.get((owner, name.removeprefix(prefix)))
        name = name.removeprefix("base_model.model.")
        part = next((p for p in ADAPTED_PARTS if name.startswith(f"{p}.")), None)
        path = name.removeprefix(f"{part}.")
        for old, new in OLD_PATHS:
            path = re.sub(old, new, path)
        for candidate in ((part or "unet", path), (part or "", f"text_model.{path}")):
            if candidate in self.modules:
                return candidate
        return None
