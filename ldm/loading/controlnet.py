"""A ControlNet's folder or file → the module.

Files have diffusers' names, or those of the authors' code (lllyasviel/ControlNet, ``cldm.py``),
under "control_model." or bare, also within a whole checkpoint. Source: Zhang et al. 2023.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.family import FAMILIES, read_family
from ldm.checkpoints.folder import empty, fill, load_component, read_weights
from ldm.checkpoints.kinds import article, find_adapter, listed
from ldm.checkpoints.names import to_ours
from ldm.checkpoints.original import CONTROL, controlnet_names, left_over, read_original
from ldm.checkpoints.tensors import read_checkpoint
from ldm.config import ControlNetConfig, UNetConfig, read_json
from ldm.config.controlnet_union import ControlNetUnionConfig
from ldm.config.picture_readers import CONTROLNET
from ldm.config.t2i_adapter import CLASS as T2I_CLASS
from ldm.control.controlnet import ControlNet
from ldm.control.union import ControlNetUnion
from ldm.errors import CheckpointError
from ldm.loading.control_lora import MARK, read_control_lora
from ldm.loading.other_kinds import refuse_other

MOST_LAYERS = 64  # of a ControlNet-Union's transformer; published ones have one
THEIRS, OURS = "input_hint_block.0.weight", "controlnet_cond_embedding.conv_in.weight"
TEXT_KEY = re.compile(r"transformer_blocks\.0\.attn2\.to_k\.weight$")
# Kinds that have names of ControlNets, but compute otherwise: a pattern of their names.
OTHERS = (
    ("SparseCtrl", r"motion_modules\."),
    ("ControlNet-XS", r"^(?:ctrl_to_base|base_to_ctrl|control_model\..*enc_zero_convs)"),
    ("ControlNet of differences to a U-Net", r"^difference$"),
)  # fmt: skip
CLASSES = {
    "SparseControlNetModel": "SparseCtrl",
    "ControlNetXSAdapter": "ControlNet-XS",
}
NETWORKS: dict[str, type[ControlNet]] = {
    name: network
    for network in (ControlNet, ControlNetUnion)
    for name in network.config_class.CLASSES
}
UNSUPPORTED = "only ControlNets of Stable Diffusion 1.x, 2.x and XL are supported"


def load_controlnet(
    path: Path,
    unet: UNetConfig,
    dtype: torch.dtype | None,
    device: torch.device,
    base: Callable[[], Mapping[str, Tensor]] | None = None,
) -> ControlNet:
    """Load a ControlNet for a model with such a U-Net.

    base: gives the U-Net's own weights, which a Control-LoRA changes.
    Raises CheckpointError for a file or a folder that is missing, broken or of another kind, and
    for a ControlNet of another family, by name.
    """
    if path.is_dir():
        return load_controlnet_folder(path, unet, dtype, device)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a ControlNet's folder or file")
    config = read_json(path.parent / "config.json", optional=True)
    known = config.get("_class_name") in NETWORKS
    if known and path.name.startswith(ControlNet.weight_stem):
        network = NETWORKS[config["_class_name"]]
        own = network.config_class.from_dict(config, str(path.parent / "config.json"))
        check_fits(path, own, unet)
        module = empty(network, own)
        fill(module, to_ours(read_weights(path), module.state_dict()), path, dtype, device)
        return module
    tensors = read_checkpoint(path).tensors
    if MARK in tensors and base is not None:
        first = tuple(tensors[THEIRS].shape) if THEIRS in tensors else ()
        shapes = {name: tuple(value.shape) for name, value in tensors.items()}
        layers = hint_layers(shapes)
        if len(first) != 4 or not layers:
            raise CheckpointError(f"{path} is a Control-LoRA without {THEIRS}; {UNSUPPORTED}")
        own = ControlNetConfig.like(
            unet, conditioning_channels=first[1], conditioning_embedding_out_channels=layers
        )
        return read_control_lora(path, tensors, own, base(), dtype, device)
    return read_controlnet(path, tensors, unet, dtype, device)


def load_controlnet_folder(
    folder: Path, unet: UNetConfig, dtype: torch.dtype | None, device: torch.device
) -> ControlNet:
    """Load as ``load_controlnet``: the folder itself, or "controlnet" in a pipeline's."""
    inner = folder / "controlnet"
    if inner.is_dir():
        folder = inner
    elif (folder / "model_index.json").exists():
        raise CheckpointError(
            f"{folder} is a model without a ControlNet; give it as the model: --model FOLDER"
        )
    kind = str(read_json(folder / "config.json").get("_class_name"))
    if kind == T2I_CLASS:
        raise CheckpointError(
            f"{folder} is a T2I-Adapter, not a ControlNet; give it as --t2i-adapter FOLDER"
        )
    if kind not in NETWORKS:
        raise CheckpointError(
            f"{folder / 'config.json'} is of {article(CLASSES.get(kind, kind))}; {UNSUPPORTED}"
        )
    network = NETWORKS[kind]
    check_fits(folder, network.config_class.from_file(folder / "config.json"), unet)
    return load_component(network, folder, dtype, device)


def read_controlnet(
    path: Path,
    tensors: Mapping[str, Stored],
    unet: UNetConfig,
    dtype: torch.dtype | None,
    device: torch.device,
) -> ControlNet:
    """Make a ControlNet of a file's tensors."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    check_kind(path, shapes)
    prefix = CONTROL if f"{CONTROL}{THEIRS}" in shapes or f"{CONTROL}{OURS}" in shapes else ""
    # Of a whole checkpoint, its own model is left out.
    mine = {n.removeprefix(prefix): v for n, v in tensors.items() if n.startswith(prefix)}
    config = config_of(path, {name: tuple(value.shape) for name, value in mine.items()})
    check_fits(path, config, unet)
    network = ControlNetUnion if isinstance(config, ControlNetUnionConfig) else ControlNet
    module = empty(network, config)
    if OURS in mine:
        fill(module, to_ours(mine, module.state_dict()), path, dtype, device)
        return module
    expected = {name: value.shape for name, value in module.state_dict().items()}
    found = read_original(mine, expected, "", controlnet_names(config))
    if unknown := left_over(mine, ""):
        raise CheckpointError(
            f"{path} has {unknown[0]} and {len(unknown) - 1} more tensors that no ControlNet of "
            "its family has; it is of another architecture, which is not supported"
        )
    fill(module, found, path, dtype, device)
    return module


def check_kind(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Raise CheckpointError for anything but a ControlNet, with what to do with it."""
    names = listed(shapes)
    for name, pattern in OTHERS:
        if re.search(pattern, names, re.MULTILINE):
            raise CheckpointError(f"{path} is {article(name)}; {UNSUPPORTED}")
    own = any(name.removeprefix(CONTROL) in (THEIRS, OURS) for name in shapes)
    if own and find_adapter(names) is None:
        return
    refuse_other(path, shapes, CONTROLNET, UNSUPPORTED)


def config_of(path: Path, shapes: Mapping[str, tuple[int, ...]]) -> ControlNetConfig:
    """Return the configuration of a file's ControlNet, by the shapes in it.

    Raises CheckpointError for an unknown family.
    """
    widths = {
        shape[1] for name, shape in shapes.items() if TEXT_KEY.search(name) and len(shape) == 2
    }
    if len(widths) != 1 or not widths <= FAMILIES.keys():
        seen = f"reads texts of width {min(widths)}" if widths else "has no attention to a text"
        raise CheckpointError(
            f"{path} is a ControlNet that {seen}; known are {', '.join(map(str, FAMILIES))}: give "
            "its folder with a config.json"
        )
    family = read_family(FAMILIES[widths.pop()])
    first = shapes.get(OURS) or shapes.get(THEIRS) or ()
    layers = hint_layers(shapes)
    if len(first) != 4 or not layers:
        raise CheckpointError(f"{path} has no network for its pictures; it is damaged")
    union = union_sizes(shapes)
    config_class = ControlNetUnionConfig if union else ControlNetConfig
    return config_class.like(
        family.unet,
        in_channels=family.unet.in_channels,
        conditioning_channels=first[1],
        conditioning_embedding_out_channels=layers,
        **union,
    )


def union_sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, int]:
    """Return the sizes of a ControlNet-Union by the shapes in its file; {} of another ControlNet.

    Its number of heads is in no shape, and changes nothing: see ``ldm.control.union``.
    """
    kinds = shapes.get("task_embedding", ())
    if len(kinds) != 2:
        return {}
    layers = {name.split(".")[1] for name in shapes if name.startswith("transformer_layes.")}
    if len(layers) > MOST_LAYERS:
        raise CheckpointError(
            f"it is a ControlNet-Union of {len(layers):,} layers; expected {MOST_LAYERS} at most"
        )
    width = (shapes.get("spatial_ch_projs.weight") or kinds)[0]
    return {
        "num_control_type": kinds[0],
        "num_trans_channel": kinds[1],
        "num_trans_layer": len(layers),
        "num_proj_channel": width,
    }


def hint_layers(shapes: Mapping[str, tuple[int, ...]]) -> list[int]:
    """Return the channels of each resolution of the network for pictures, finest first."""
    theirs = THEIRS in shapes
    form = "input_hint_block.{}.weight" if theirs else "controlnet_cond_embedding.blocks.{}.weight"
    start, step = (2, 2) if theirs else (0, 1)
    found: list[int] = []
    for i in range(0, 32, 2):  # pairs: one keeps the resolution, the next halves it
        shape = shapes.get(form.format(start + i * step))
        if shape is None or form.format(start + (i + 1) * step) not in shapes or len(shape) != 4:
            break
        found.append(shape[1])
        last = shapes[form.format(start + (i + 1) * step)]
        width = last[0] if last else 0
    return [*found, width] if found else []


def check_fits(path: Path, config: ControlNetConfig, unet: UNetConfig) -> None:
    """Raise CheckpointError for a ControlNet of another family than the U-Net."""
    mine, its = unet.cross_attention_dim, config.cross_attention_dim
    if mine is None:
        raise CheckpointError(f"{path} is a ControlNet, but this model reads no text")
    if mine != its:
        raise CheckpointError(
            f"{path} is a ControlNet for {named(its)}; this model is {named(mine)}: give a "
            "ControlNet that was made for it"
        )
    pairs = {
        "block_out_channels": (config.block_out_channels, unet.block_out_channels),
        "layers_per_block": (config.layers, unet.layers),
        "addition_embed_type": (config.addition_embed_type, unet.addition_embed_type),
    }
    for name, (found, wanted) in pairs.items():
        if found != wanted:
            raise CheckpointError(
                f"{path} is a ControlNet with {name} {found}; this model's U-Net has {wanted}: "
                "give a ControlNet that was made for it"
            )


def check_latents(path: Path, config: ControlNetConfig, channels: int, scale: int) -> None:
    """Raise CheckpointError for a ControlNet of other latents.

    channels: of the latents; scale: pixels along a side for each of them.
    """
    if config.in_channels != channels:
        raise CheckpointError(
            f"{path} is a ControlNet for latents of {config.in_channels} channels; this model's "
            f"have {channels}"
        )
    if config.hint_scale != scale:
        raise CheckpointError(
            f"{path} reduces its pictures to 1/{config.hint_scale} of their size, but this model's "
            f"latents are 1/{scale}; it is for another model"
        )


def named(width: int | None) -> str:
    """Name a family by the width of its texts."""
    if width in FAMILIES:
        return read_family(FAMILIES[width]).name
    return f"a model that reads texts of width {width}"
