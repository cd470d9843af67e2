"""LoRAs as files: under kohya's names, which every tool reads, or under diffusers' and peft's."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import save
from torch import Tensor

from ldm.checkpoints.lora_kinds import Factors, rank_of
from ldm.checkpoints.lora_names import Module
from ldm.checkpoints.original import Rename

Updates = Mapping[Module, Factors[Tensor]]
# What a role is called at the end of a name, where it is not called by its role.
KOHYA_ENDS = {"down": "lora_down.weight", "up": "lora_up.weight"}
PEFT_ENDS = {"down": "lora_A.weight", "up": "lora_B.weight", "dora_scale": "lora_magnitude_vector"}


def kohya_tensors(updates: Updates, original: Rename, xl: bool) -> dict[str, Tensor]:
    """Name a LoRA's tensors as kohya's sd-scripts and LyCORIS do.

    original: the U-Net's names in single files, by which SDXL's layers are called.
    """
    encoders = {
        "text_encoder": "lora_te1" if xl else "lora_te",
        "text_encoder_2": "lora_te2",
    }
    tensors = {}
    for (part, path), factors in updates.items():
        if part == "unet" and xl:
            path = original(f"{path}.weight").name.removesuffix(".weight")
        stem = f"{encoders.get(part, 'lora_unet')}_{path.replace('.', '_')}"
        for role, value in factors.tensors.items():
            tensors[f"{stem}.{KOHYA_ENDS.get(role, role)}"] = value
        tensors[f"{stem}.alpha"] = torch.tensor(scale_of(factors)[1])
    return tensors


def peft_tensors(updates: Updates) -> dict[str, Tensor]:
    """Name the tensors of one part's adapters as peft does."""
    tensors = {}
    for (_, path), factors in updates.items():
        for role, value in factors.tensors.items():
            if role == "dora_scale":
                value = value.flatten() if value.ndim == 2 else value.transpose(0, 1)
            tensors[f"{path}.{PEFT_ENDS.get(role, role)}"] = value
    return tensors


def diffusers_tensors(updates: Updates) -> dict[str, Tensor]:
    """Name a LoRA's tensors as diffusers does: peft's names behind the part's.

    There is no α, which tools that read this layout take for the rank: it is brought into "up".
    """
    tensors: dict[str, Tensor] = {}
    for module, factors in updates.items():
        rank, alpha = scale_of(factors)
        scaled = factors.tensors | {"up": factors.tensors["up"] * (alpha / rank)}
        named = peft_tensors({module: Factors(scaled)})
        tensors |= {f"{module[0]}.{name}": value for name, value in named.items()}
    return tensors


def peft_config(updates: Updates) -> dict[str, Any]:
    """Return peft's settings of one part's adapters: ``adapter_config.json``."""
    scales = {path: scale_of(factors) for (_, path), factors in updates.items()}
    rank, alpha = Counter(scales.values()).most_common(1)[0][0]
    first = next(iter(updates.values()))
    kind = first.kinds[0]
    config: dict[str, Any] = {
        "r": rank,
        "target_modules": sorted(scales),
        "rank_pattern": {path: r for path, (r, _) in scales.items() if r != rank},
        "alpha_pattern": {path: a for path, (_, a) in scales.items() if a != alpha},
    }
    if kind == "LoRA":
        return config | {"lora_alpha": alpha, "use_dora": "dora_scale" in first.tensors}
    return config | {"peft_type": kind.upper(), "alpha": alpha}


def scale_of(factors: Factors[Tensor]) -> tuple[int, float]:
    """Return the rank and α of a layer; LoKr's whole matrices have the scale 1."""
    rank = rank_of(factors)
    if rank is None:
        rank = max(max(value.shape[:2]) for value in factors.tensors.values())
        return rank, float(rank)
    return rank, float(rank) if factors.alpha is None else factors.alpha


def model_hash(tensors: Mapping[str, Tensor]) -> str:
    """Return kohya's ``sshs_model_hash``: SHA-256 of a file's bytes behind its header."""
    content = save({name: value.contiguous() for name, value in tensors.items()})
    return hashlib.sha256(content[8 + int.from_bytes(content[:8], "little") :]).hexdigest()
