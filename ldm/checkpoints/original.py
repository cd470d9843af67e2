"""The names of the original code (CompVis, SGM, OpenCLIP), used in single files, for our names.

Sources: CompVis/latent-diffusion (openaimodel.py, model.py), mlfoundations/open_clip
(transformer.py). One function for each network maps a tensor of ours to its place in such a file;
reading and writing both use it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import accumulate
from typing import TYPE_CHECKING, NamedTuple

from ldm.errors import CheckpointError

if TYPE_CHECKING:  # the names alone need no PyTorch
    import torch
    from torch import Tensor

    from ldm.checkpoints.deferred import Stored
    from ldm.config import ControlNetConfig


class Place(NamedTuple):
    """Where a tensor of ours is in an original file."""

    name: str
    third: int | None = None  # which third of its rows: queries, keys and values in one
    transposed: bool = False


Rename = Callable[[str], Place]

RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
UNET_ENDS = {
    "conv_in": "input_blocks.0.0",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "time_embedding.cond_proj": "time_embed.cond_proj",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "class_embedding": "label_emb",  # of the x4 upscaler; the next two of unCLIP
    "class_embedding.linear_1": "label_emb.0.0",
    "class_embedding.linear_2": "label_emb.0.2",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
CONTROL = "control_model."  # before the names of a ControlNet
VAE_ATTENTION = {
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
}
OPEN_CLIP = {
    "embeddings.token_embedding.weight": "token_embedding.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    "final_layer_norm.weight": "ln_final.weight",
    "final_layer_norm.bias": "ln_final.bias",
}
OPEN_CLIP_LAYER = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}
UNUSED = (
    r"(position_ids|logit_scale|text_projection(\.weight)?|attn_mask)$|\.visual\.|"
    r"^first_stage_model\.(loss|model_ema)\."
)
QKV = ("q_proj", "k_proj", "v_proj")


def unet_names(layers: Sequence[int], attention_up: Iterable[bool]) -> Rename:
    """Map the names of a U-Net.

    layers: residual blocks of each level on the way down, finest first; on the way up, one more.
    attention_up: which levels on the way up have attention, coarsest first.
    """
    attention_up = list(attention_up)
    # The first block of each level; the original counts a change of resolution down as a block.
    ways = {"down": [1 + layer for layer in layers], "up": [1 + layer for layer in layers[::-1]]}
    starts = {way: [0, *accumulate(counts)] for way, counts in ways.items()}

    def rename(key: str) -> Place:
        if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", key):
            way, level, kind, index, rest = found.groups()
            level, index = int(level), int(index)
            block = starts[way][level] + index + (way == "down")
            if kind == "downsamplers":
                block, inner = starts[way][level + 1], rest.replace("conv.", "0.op.", 1)
            elif kind == "upsamplers":
                block = starts[way][level + 1] - 1
                inner = f"{1 + attention_up[level]}.{rest}"
            elif kind == "resnets":
                inner = f"0.{_replaced(rest, RESNET)}"
            else:
                inner = f"1.{rest}"
            return Place(f"{'input' if way == 'down' else 'output'}_blocks.{block}.{inner}")
        if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", key):
            kind, index, rest = found.groups()
            if kind == "attentions":
                return Place(f"middle_block.1.{rest}")
            return Place(f"middle_block.{2 * int(index)}.{_replaced(rest, RESNET)}")
        return Place(_replaced(key, UNET_ENDS))

    return rename


def controlnet_names(config: ControlNetConfig) -> Rename:
    """Map the names of a ControlNet (lllyasviel/ControlNet, cldm.py)."""
    unet = unet_names(config.layers, ())
    last = 2 * len(config.conditioning_embedding_out_channels)

    def rename(key: str) -> Place:
        if found := re.match(r"controlnet_down_blocks\.(\d+)\.(.+)", key):
            return Place(f"zero_convs.{found[1]}.0.{found[2]}")
        if key.startswith("controlnet_mid_block."):
            return Place(key.replace("controlnet_mid_block", "middle_block_out.0"))
        if found := re.match(r"controlnet_cond_embedding\.blocks\.(\d+)\.(.+)", key):
            return Place(f"input_hint_block.{2 * int(found[1]) + 2}.{found[2]}")
        if found := re.match(r"controlnet_cond_embedding\.(conv_in|conv_out)\.(.+)", key):
            number = 0 if found[1] == "conv_in" else 2 * last - 2
            return Place(f"input_hint_block.{number}.{found[2]}")
        return unet(key)

    return rename


def vae_names(levels: int) -> Rename:
    """Map the names of a VAE; the original counts the levels of the decoder from the finest."""

    def rename(key: str) -> Place:
        coder, _, rest = key.partition(".")
        if found := re.match(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", rest):
            way, level, kind, index, inner = found.groups()
            level = int(level) if way == "down" else levels - 1 - int(level)
            if kind == "resnets":
                inner = f"block.{index}.{inner.replace('conv_shortcut', 'nin_shortcut')}"
            else:
                inner = f"{way}sample.{inner}"
            return Place(f"{coder}.{way}.{level}.{inner}")
        if found := re.match(r"mid_block\.(resnets|attentions)\.(\d+)\.(.+)", rest):
            kind, index, inner = found.groups()
            if kind == "attentions":
                return Place(f"{coder}.mid.attn_1.{_replaced(inner, VAE_ATTENTION)}")
            return Place(f"{coder}.mid.block_{int(index) + 1}.{inner}")
        return Place(key.replace("conv_norm_out", "norm_out"))

    return rename


def clip_names(key: str) -> Place:
    """Map the names of OpenAI's text encoder, which are transformers' and ours."""
    return Place(key)


def open_clip_names(key: str) -> Place:
    """Map the names of OpenCLIP's text encoders."""
    if key == "text_projection.weight":
        return Place("text_projection", transposed=True)
    key = key.removeprefix("text_model.")
    if found := re.match(r"encoder\.layers\.(\d+)\.(.+)\.(weight|bias)", key):
        layer, part, kind = found.groups()
        block = f"transformer.resblocks.{layer}"
        name = part.removeprefix("self_attn.")
        if name in QKV:
            return Place(f"{block}.attn.in_proj_{kind}", third=QKV.index(name))
        return Place(f"{block}.{OPEN_CLIP_LAYER[part]}.{kind}")
    return Place(OPEN_CLIP[key])


def read_original(
    tensors: dict[str, Stored], shapes: Mapping[str, torch.Size], prefix: str, rename: Rename
) -> dict[str, Stored]:
    """Take the tensors of one network out of a file's, under our names; ``shapes`` are its own.

    What the file lacks is left out; a tensor of a wrong shape keeps it.
    """
    from ldm.checkpoints.deferred import change, take_third

    ours: dict[str, Stored] = {}
    taken = set()
    for key, shape in shapes.items():
        name, third, transposed = rename(key)
        name = prefix + name
        if name not in tensors:
            # Some tools write OpenAI's text encoder as transformers ≥ 5.6 has it.
            name = name.replace(".text_model.", ".", 1)
        if name not in tensors:
            continue
        taken.add(name)
        value = tensors[name]
        if third is not None and value.ndim and value.shape[0] % 3 == 0:
            value = change(value, partial(take_third, index=third))
        if transposed and value.ndim == 2:
            value = change(value, lambda x: x.T.contiguous())
        if value.ndim == 4 and len(shape) == 2:  # a 1×1 convolution does what a linear layer does
            value = change(value, lambda x: x.flatten(1))
        ours[key] = value
    for name in taken:
        del tensors[name]
    return ours


def write_original(
    module: Mapping[str, Tensor], prefix: str, rename: Rename, convolutions: bool = False
) -> dict[str, Tensor]:
    """Invert ``read_original``. ``convolutions``: attention's linear layers become 1×1."""
    import torch

    theirs: dict[str, Tensor] = {}
    thirds: dict[str, dict[int, Tensor]] = {}
    for key, value in module.items():
        name, third, transposed = rename(key)
        name = prefix + name
        if third is not None:
            thirds.setdefault(name, {})[third] = value
            continue
        value = value.T.contiguous() if transposed else value
        theirs[name] = value[..., None, None] if convolutions and value.ndim == 2 else value
    for name, parts in thirds.items():
        theirs[name] = torch.cat([parts[i] for i in range(3)])
    return theirs


def use_ema(tensors: dict[str, Stored], prefix: str) -> None:
    """Put the averaged copies of a network's tensors in their place.

    Training checkpoints of CompVis hold them under names without dots. Raises CheckpointError
    if there are none.
    """
    copies = {
        key: f"model_ema.{key.removeprefix('model.').replace('.', '')}"
        for key in tensors
        if key.startswith(prefix)
    }
    if missing := [name for name in copies.values() if name not in tensors]:
        raise CheckpointError(f"it has no averaged copy of the weights: {missing[0]} is missing")
    for key, copy in copies.items():
        tensors[key] = tensors.pop(copy)


def left_over(tensors: Iterable[str], prefix: str, layers: int | None = None) -> list[str]:
    """Return the names below ``prefix`` that the pictures depend on.

    Published files also hold unused tensors there, and some for training only; and OpenCLIP's text
    encoders have more ``layers`` than are used.
    """
    names = (name for name in tensors if name.startswith(prefix))
    kept = [name for name in names if not re.search(UNUSED, name)]
    layer_of = re.compile(r"\.(?:resblocks|encoder\.layers)\.(\d+)\.")
    found = ((name, layer_of.search(name)) for name in kept)
    return [name for name, layer in found if not (layer and layers and int(layer[1]) >= layers)]


def _replaced(key: str, table: Mapping[str, str]) -> str:
    """Replace the module's name at the beginning of ``key``, if the table has it."""
    module, _, parameter = key.rpartition(".")
    return f"{table.get(module, module)}.{parameter}"
