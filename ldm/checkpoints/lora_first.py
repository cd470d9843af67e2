"""The first LoRA files, of cloneofsimo's lora (2022): layers by number, not by name.

They number the linear layers inside modules of some classes, in the order in which the diffusers
of that time had them; a ``.safetensors`` file names the classes in its metadata, a ``.pt`` file is
a bare list. Its factors have no α: up · down is added as it is. Needs no PyTorch.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from ldm.checkpoints.lora_kinds import S
from ldm.checkpoints.lora_names import Module

T = TypeVar("T")

KEY = re.compile(r"(unet|text_encoder):(\d{1,6}):(up|down)")
# Each class's layers in the order of their definition; "Attention" is later "CrossAttention".
ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")
CLASSES = {
    "CrossAttention": tuple(f"attn{i}.{name}" for i in (1, 2) for name in ATTENTION),
    "GEGLU": ("ff.net.0.proj",),
    "ResnetBlock2D": ("conv1", "time_emb_proj", "conv2", "conv_shortcut"),
    "CLIPAttention": tuple(f"self_attn.{name}_proj" for name in ("k", "v", "q", "out")),
    "CLIPMLP": ("mlp.fc1", "mlp.fc2"),
}
# diffusers before 0.18 defined the feed-forward layer between both attentions.
ORDERS = (("attn1", "ff", "attn2"), ("attn1", "attn2", "ff"))
DEFAULTS: Sequence[tuple[str, set[str]]] = (
    ("unet", {"CrossAttention", "GEGLU"}),
    ("unet", {"CrossAttention"}),
    ("unet", {"CrossAttention", "GEGLU", "ResnetBlock2D"}),
    ("text_encoder", {"CLIPAttention"}),
)
BLOCK = re.compile(
    r"(?:(down|up)_blocks\.(\d+)|(mid)_block)\.(attentions|resnets)\.(\d+)\."
    r"(?:transformer_blocks\.(\d+)\.)?(.+)"
)

TEXT_LAYER = re.compile(r"text_model\.encoder\.layers\.(\d+)\.(.+)")


def is_first_format(keys: Sequence[str]) -> bool:
    """Whether a file numbers its layers."""
    return any(map(KEY.fullmatch, keys))


def keys_of_list(count: int) -> list[str]:
    """Return the keys of a bare list of factors, up and down in turn, before its part is known."""
    return [f"unet:{i // 2}:{'down' if i % 2 else 'up'}" for i in range(count)]


def plain_names(tensors: Mapping[str, T]) -> dict[str, T]:
    """Return tensors whose layers are numbered under names of peft's form, for descriptions."""
    return {KEY.sub(r"\1.\2.lora_\3.weight", key): value for key, value in tensors.items()}


def name_layers(
    tensors: Mapping[str, S],
    metadata: Mapping[str, str],
    layers: Mapping[Module, tuple[int, ...]],
) -> dict[str, str]:
    """Find the names, as peft writes them, of a file's keys.

    layers: the shapes of the model's weights. Raises ValueError if the numbers are not those of
    this model's layers.
    """
    found: dict[str, str] = {}
    for part in ("unet", "text_encoder"):
        mine = {key: value for key, value in tensors.items() if key.startswith(f"{part}:")}
        if not mine:
            continue
        stated = part in metadata
        trials = [(part, read_classes(metadata[part], part))] if stated else DEFAULTS
        found |= numbered(mine, trials, layers, whole=not stated)
    return found


def read_classes(text: str, part: str) -> set[str]:
    """Read the classes in the metadata. Raises ValueError for any that are not known."""
    try:
        names = {str(name) for name in json.loads(text)}
    except (ValueError, TypeError, RecursionError):
        raise ValueError(f"its metadata {part!r} is no list of classes") from None
    names = {"CrossAttention" if name == "Attention" else name for name in names}
    if other := names - CLASSES.keys():
        raise ValueError(f"its layers are inside {min(other)[:80]!r}, which is not known")
    return names


def numbered(
    tensors: Mapping[str, S],
    trials: Sequence[tuple[str, set[str]]],
    layers: Mapping[Module, tuple[int, ...]],
    whole: bool,
) -> dict[str, str]:
    """Return each key's name by the first order of layers in which all shapes fit.

    whole: whether the file must have all of the layers. Raises ValueError if they fit in none.
    """
    places = {key: KEY.fullmatch(key) for key in tensors}
    for part, classes in trials:
        for order in ORDERS:
            paths = ordered([path for owner, path in layers if owner == part], classes, order)
            if whole and len(tensors) != 2 * len(paths):
                continue
            named = {}
            for key, place in places.items():
                index = int(place[2]) if place else len(paths)
                if place is None or index >= len(paths):
                    break
                weight = layers[part, paths[index]]
                axis = int(place[3] == "down")
                if len(tensors[key].shape) < 2 or tensors[key].shape[axis] != weight[axis]:
                    break
                named[key] = f"{part}.{paths[index]}.lora_{place[3]}.weight"
            else:
                return named
    raise ValueError(
        f"its {len(tensors)} numbered layers are not those of this model; "
        "it is for another family of models"
    )


def ordered(paths: Sequence[str], classes: set[str], order: Sequence[str]) -> list[str]:
    """Return the layers inside modules of the classes, in the order in which they are numbered."""
    ranks = {layer: i for name in classes for i, layer in enumerate(CLASSES[name])}
    placed: list[tuple[tuple[int, ...], str]] = []
    for path in paths:
        if found := BLOCK.fullmatch(path):
            way, block, mid, kind, index, inner, layer = found.groups()
            if layer in ranks:
                # The middle block was defined last.
                outer = (("down", "up", "mid").index(way or mid), int(block or 0))
                unit = layer.split(".")[0]
                unit_rank = order.index(unit) if unit in order else 0
                key = (*outer, kind == "resnets", int(index), int(inner or 0), unit_rank)
                placed.append(((*key, ranks[layer]), path))
        elif (found := TEXT_LAYER.fullmatch(path)) and found[2] in ranks:
            placed.append(((int(found[1]), found[2].startswith("mlp"), ranks[found[2]]), path))
    return [path for _, path in sorted(placed)]
