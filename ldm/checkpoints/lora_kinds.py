"""The kinds of LoRA: which tensors belong together to change one layer, by their names' ends.

LoRA is Hu et al. 2021; the others are LyCORIS' (Yeh et al. 2023, "Navigating text-to-image
customization") and peft's. Needs no PyTorch, so that ``ldm-info`` starts fast.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Generic, Protocol, TypeVar

# peft puts the name of an adapter behind its own; a file of several has several.
NAMED = r"(?:\.\w+)?"
# What a tensor is to its layer, by the end of its name.
TENSOR_ENDS = {
    "down": rf"[._](?:lora_down|lora\.down|lora_linear_layer\.down|lora_A{NAMED})\.weight",
    "up": rf"[._](?:lora_up|lora\.up|lora_linear_layer\.up|lora_B{NAMED})\.weight",
    "mid": r"\.lora_mid\.weight",
    "up_bias": rf"\.(?:lora_up|lora_B{NAMED})\.bias",
    "alpha": r"\.alpha",
    "dora_scale": r"\.dora_scale",
    "magnitude": rf"\.lora_magnitude_vector{NAMED}(?:\.weight)?",
    **{
        name: rf"\.{name}{NAMED}"
        for name in (
            *("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2"),
            *("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2"),
            *("boft_R", "boft_s", "ia3_l"),
        )
    },
    **{f"glora_{name}": rf"\.{name}\.weight" for name in ("a1", "a2", "b1", "b2", "bm")},
    "oft_blocks": r"\.oft_blocks",
    "rescale": r"\.rescale",
    "oft_R": rf"\.oft_R{NAMED}\.weight",
    "scaled_oft": rf"\.oft_R{NAMED}\.scaled_oft",
    "on_input": r"\.on_input",
    "diff": r"\.(?:diff|w_norm)",
    "diff_b": r"\.(?:diff_b|b_norm)",
}
END = re.compile("|".join(f"(?P<{role}>{end})" for role, end in TENSOR_ENDS.items()))
ENDS = re.compile(f"(?:{END.pattern})$")
# The tensors that each kind needs, in any of these combinations …
KINDS: dict[str, tuple[set[str], ...]] = {
    "LoRA": ({"down", "up"},),
    "LoHa": ({"hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"},),
    "LoKr": (
        {"lokr_w1", "lokr_w2"},
        {"lokr_w1", "lokr_w2_a", "lokr_w2_b"},
        {"lokr_w1_a", "lokr_w1_b", "lokr_w2"},
        {"lokr_w1_a", "lokr_w1_b", "lokr_w2_a", "lokr_w2_b"},
    ),
    "GLoRA": ({"glora_a1", "glora_a2", "glora_b1", "glora_b2"},),
    "OFT": ({"oft_blocks"}, {"oft_R"}),
    "BOFT": ({"boft_R", "boft_s"},),
    "IA3": ({"ia3_weight", "on_input"}, {"ia3_l"}),
    "full difference": ({"diff"}, {"diff_b"}),
}
# … and those that it may have besides.
OPTIONAL = {
    "LoRA": {"mid", "up_bias", "dora_scale", "magnitude", "alpha"},
    "LoHa": {"hada_t1", "hada_t2", "dora_scale", "alpha"},
    "LoKr": {"lokr_t2", "dora_scale", "alpha"},
    "GLoRA": {"glora_bm", "alpha"},
    "OFT": {"rescale", "scaled_oft", "alpha"},
    "BOFT": {"alpha"},
    "IA3": {"alpha"},
    "full difference": {"diff_b", "alpha"},
}
SUPPORTED = "LoRA, LoCon, DoRA, LoHa, LoKr, GLoRA, OFT, BOFT, IA3 and full differences are"
# Kinds that must not be used in part, by the ends of their tensors' names.
UNSUPPORTED = {
    "T-LoRA": r"\.(?:[pq]_layer\.weight|lambda_layer)",
    "VeRA": r"\.vera_lambda_[bd](?:\.\w+)?",
    "HRA": r"\.hra_u(?:\.\w+)?",
    "FourierFT": r"\.fourierft_spectrum(?:\.\w+)?",
    "VB-LoRA": r"\.vblora_(?:logits|vector)_\w+(?:\.\w+)?",
    "LoRA of embeddings": r"\.lora_embedding_[AB](?:\.\w+)?",
    "peft's first OFT": r"\.oft_[rs](?:\.\w+)?",
    "sparse residual": r"\.bias_(?:indices|values|size)",
    "whole-weight": r"\.(?:set_weight|reshape_weight)",
}


class Shaped(Protocol):
    """A tensor, or its entry in a header."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Sizes along all axes."""


T = TypeVar("T")
S = TypeVar("S", bound=Shaped)


@dataclass
class Factors(Generic[T]):
    """The tensors that change one layer, and their names in the file, both by role."""

    tensors: dict[str, T]
    names: dict[str, str] = field(default_factory=dict)
    alpha: float | None = None  # of settings beside the tensors

    def get(self, role: str) -> T | None:
        """Return the tensor of a role, None if there is none."""
        return self.tensors.get(role)

    @property
    def kinds(self) -> list[str]:
        """The kinds whose tensors are all here."""
        have = self.tensors.keys()
        return [kind for kind, sets in KINDS.items() if any(need <= have for need in sets)]

    @property
    def begun(self) -> list[str]:
        """The kinds of which at least one tensor is here."""
        have = self.tensors.keys()
        return [kind for kind, sets in KINDS.items() if have & set().union(*sets)]

    @property
    def left(self) -> set[str]:
        """Roles that none of the kinds uses."""
        used = {role for kind in self.kinds for role in OPTIONAL[kind].union(*KINDS[kind])}
        return self.tensors.keys() - used


def group(tensors: Mapping[str, T]) -> tuple[dict[str, Factors[T]], list[str]]:
    """Group tensors by their layers' names in the file; also return names that are no LoRA's."""
    groups: dict[str, Factors[T]] = {}
    unknown: list[str] = []
    weights: list[str] = []
    for name, value in tensors.items():
        found = ENDS.search(name)
        if found is None or found.lastgroup is None:
            (weights if name.endswith(".weight") else unknown).append(name)
            continue
        stem = name[: found.start()]
        # "….to_q_lora.down.weight": the underscore belongs to the module's old name.
        stem += "_lora" if found[0].startswith("_lora.") else ""
        factors = groups.setdefault(stem, Factors({}))
        if found.lastgroup in factors.names:  # one of several adapters in a file
            unknown.append(name)
        else:
            factors.names[found.lastgroup] = name
            factors.tensors[found.lastgroup] = value
    for name in weights:  # LyCORIS' IA3 calls its vector so
        stem = name.removesuffix(".weight")
        if stem in groups and "on_input" in groups[stem].names:
            groups[stem].names["ia3_weight"] = name
            groups[stem].tensors["ia3_weight"] = tensors[name]
        else:
            unknown.append(name)
    return groups, unknown


def unsupported(names: Iterable[str]) -> dict[str, dict[str, str]]:
    """Find names of other kinds of adapters: for each kind, the names and their modules'."""
    found: dict[str, dict[str, str]] = {}
    for name in names:
        for kind, end in UNSUPPORTED.items():
            if place := re.search(f"{end}$", name):
                found.setdefault(kind, {})[name] = name[: place.start()]
                break
    return found


def describe_kinds(groups: Mapping[str, Factors[T]]) -> list[str]:
    """Name the kinds in a file, most frequent first: "LoRA", "DoRA", "LoKr with DoRA", …"""
    counts = Counter(kind for factors in groups.values() for kind in factors.begun)
    with_lengths = {
        kind
        for factors in groups.values()
        if {"dora_scale", "magnitude"} & factors.tensors.keys()
        for kind in factors.begun
    }
    names = {kind: f"{kind} with DoRA" for kind in with_lengths} | {
        kind: "DoRA" for kind in with_lengths if kind == "LoRA"
    }
    return [names.get(kind, kind) for kind, _ in counts.most_common()]


def input_width(factors: Factors[S]) -> int | None:
    """Return the number of inputs of the layer that tensors change; None if they do not tell."""

    def size(role: str, axis: int = 1) -> int | None:
        value = factors.get(role)
        return value.shape[axis] if value is not None and len(value.shape) > axis else None

    first, second = (size(f"lokr_w{i}") or size(f"lokr_w{i}_b") for i in (1, 2))
    if first and second:
        return first * second
    found = size("down") or size("hada_w1_b") or size("diff") or size("glora_b2")
    return found or None


def rank_of(factors: Factors[S]) -> int | None:
    """Return the rank of a low-rank update; None if it has none."""
    for role in ("down", "hada_w1_b", "lokr_w1_b", "lokr_w2_b", "glora_a2"):
        if (tensor := factors.get(role)) is not None and len(tensor.shape):
            return tensor.shape[0]
    return None
