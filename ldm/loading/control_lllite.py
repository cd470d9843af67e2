"""A ControlNet-LLLite's file → the module.

Names are "lllite_unet_", a layer's name in the original code (or in diffusers) with "_" for ".",
then that of a tensor of the layer's network. Source: kohya-ss/sd-scripts.
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import cast

import torch
from torch import nn

from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.folder import Uninitialised, fill
from ldm.checkpoints.header import read_header
from ldm.checkpoints.tensors import read_checkpoint
from ldm.control.control_lllite import ControlLLLite, LayerSizes, LLLiteConfig
from ldm.errors import CheckpointError
from ldm.loading.single_file import names_of
from ldm.unet import UNet

PREFIX = "lllite_unet_"
# Layers that read the pixels, of which published files have all or some.
TARGET = re.compile(
    r"(down_blocks\.(\d+)|mid_block|up_blocks\.(\d+))\..*\.(attn1\.to_[qkv]|attn2\.to_q)$"
)
WEIGHTS = ("down.0.weight", "mid.0.weight", "up.0.weight")


def is_control_lllite(path: Path) -> bool:
    """Whether a file is a ControlNet-LLLite's, by its names alone; False for any other."""
    if not path.is_file() or path.suffix not in (".safetensors", ".sft"):
        return False
    names = read_header(path).tensors
    return bool(names) and all(name.startswith("lllite_") for name in names)


def load_control_lllite(
    path: Path, unet: UNet, scale: int, dtype: torch.dtype | None, device: torch.device
) -> ControlLLLite:
    """Load a file, as ``read_control_lllite``."""
    tensors = read_checkpoint(path).tensors
    return read_control_lllite(path, tensors, unet, scale, dtype, device)


def read_control_lllite(
    path: Path,
    tensors: Mapping[str, Stored],
    unet: UNet,
    scale: int,
    dtype: torch.dtype | None,
    device: torch.device,
) -> ControlLLLite:
    """Make the ControlNet-LLLite of a file for a U-Net.

    scale: pixels along a side for each of the latents.
    Raises CheckpointError for layers that the U-Net has not, or that are not supported.
    """
    known = targets(unet)
    layers: dict[str, dict[str, Stored]] = defaultdict(dict)
    ours: dict[str, Stored] = {}
    for name, value in tensors.items():
        stem, _, inner = name.partition(".")
        if stem not in known:
            raise CheckpointError(
                f"{path} is a ControlNet-LLLite with {stem}, which is no query, key or value of "
                "pixels of this model; it is for another model, or of a kind that is not supported"
            )
        layers[known[stem]][inner] = value
        ours[f"layers.{known[stem].replace('.', '-')}.{inner}"] = value
    strides = {name: scale * 2 ** level_of(name, unet) for name in layers}
    sizes = {name: sizes_of(path, name, own, strides[name]) for name, own in layers.items()}
    for name, own in sizes.items():
        width = cast(nn.Linear, unet.get_submodule(name)).in_features
        if own.dim != width:
            raise CheckpointError(
                f"{path} is a ControlNet-LLLite for layers of width {own.dim} at {name}; this "
                f"model's has {width}: give one that was made for it"
            )
    with torch.device("meta"), Uninitialised():
        module = ControlLLLite(LLLiteConfig(sizes, max(strides.values())))
    fill(module, ours, path, dtype, device, finite=True)
    return module


def targets(unet: UNet) -> dict[str, str]:
    """Return the layers that a file may change, by its names of them."""
    rename, found = names_of(unet.config), {}
    for name, layer in unet.named_modules():
        if isinstance(layer, nn.Linear) and TARGET.match(name):
            original = rename(f"{name}.weight").name.removesuffix(".weight")
            for one in (name, original):
                found[PREFIX + one.replace(".", "_")] = name
    return found


def level_of(name: str, unet: UNet) -> int:
    """Return the level of a layer: 0 is the finest."""
    found, last = TARGET.match(name), unet.config.levels - 1
    assert found is not None  # it is one of targets()
    if found[2] is not None:
        return int(found[2])
    return last if found[3] is None else last - int(found[3])


def sizes_of(path: Path, name: str, tensors: Mapping[str, Stored], stride: int) -> LayerSizes:
    """Return the sizes of one layer's network. Raises CheckpointError for one that is damaged."""
    convolutions = [
        tuple(value.shape)
        for key, value in sorted(tensors.items())
        if re.fullmatch(r"conditioning1\.[024]\.weight", key)
    ]
    linear = [tuple(tensors[key].shape) for key in WEIGHTS if key in tensors]
    shapes = [*convolutions, *linear]
    ranks = [4] * len(convolutions) + [2] * len(WEIGHTS)
    if not convolutions or [len(shape) for shape in shapes] != ranks or 0 in sum(shapes, ()):
        raise CheckpointError(
            f"{path} is a ControlNet-LLLite without all tensors of {name}, or damaged"
        )
    kernels = tuple(shape[2] for shape in convolutions)
    if math.prod(kernels) != stride:
        raise CheckpointError(
            f"{path} reduces its picture to 1/{math.prod(kernels)} for {name}, where this model "
            f"has 1/{stride}; it is for another model"
        )
    return LayerSizes(linear[0][1], linear[0][0], convolutions[-1][0], kernels)
