"""A ControlNet from one layout to another: diffusers' folder or file, and the authors' file."""

from __future__ import annotations

from pathlib import Path

import torch

from ldm.checkpoints.describe_control import find_reader
from ldm.checkpoints.folder import save_component
from ldm.checkpoints.original import CONTROL, controlnet_names, write_original
from ldm.checkpoints.tensors import read_checkpoint, to_save, write_tensors
from ldm.config import read_json
from ldm.config.picture_readers import CONTROLNET
from ldm.control.controlnet import ControlNet
from ldm.control.union import ControlNetUnion
from ldm.errors import ArgumentError
from ldm.loading.control_lora import MARK
from ldm.loading.controlnet import (
    NETWORKS,
    OURS,
    THEIRS,
    check_kind,
    config_of,
    load_controlnet,
    read_controlnet,
)

CPU = torch.device("cpu")


def load_alone(path: Path) -> ControlNet | None:
    """Load a ControlNet without a model, in the dtype that it has; None for anything else.

    Raises CheckpointError for a broken one, ArgumentError for a Control-LoRA, which is a part of
    its model's weights.
    """
    folder = path if path.is_dir() else path.parent
    if find_reader(folder) == CONTROLNET and (
        path.is_dir() or path.name.startswith(ControlNet.weight_stem)
    ):
        kind = read_json(folder / "config.json")["_class_name"]
        config = NETWORKS[kind].config_class.from_file(folder / "config.json")
        return load_controlnet(path, config, None, CPU)
    if not path.is_file():
        return None
    tensors = read_checkpoint(path).tensors
    if MARK in tensors:
        raise ArgumentError(
            f"{path} is a Control-LoRA, which says only how a model's own weights change; use it "
            "as it is: --controlnet FILE"
        )
    names = {CONTROL + THEIRS, CONTROL + OURS, THEIRS, OURS} & tensors.keys()
    if not names or any(name.startswith("model.diffusion_model.") for name in tensors):
        return None
    check_kind(path, {name: tuple(value.shape) for name, value in tensors.items()})
    prefix = CONTROL if any(name.startswith(CONTROL) for name in names) else ""
    mine = {n.removeprefix(prefix): tuple(v.shape) for n, v in tensors.items()}
    return read_controlnet(path, tensors, config_of(path, mine), None, CPU)


def save_controlnet(
    network: ControlNet, path: Path, dtype: torch.dtype | str | None, single: bool
) -> None:
    """Write diffusers' folder or, with ``single``, the authors' file.

    That of a ControlNet-Union has diffusers' names. dtype: None keeps that of the network.
    Raises ArgumentError for a GGUF.
    """
    if isinstance(dtype, str) or path.suffix.lower() == ".gguf":
        raise ArgumentError("a ControlNet has no GGUF; let OUTPUT end in .safetensors")
    if not single:
        save_component(network, path, dtype)
        return
    tensors = to_save(network.state_dict(), dtype)
    if not isinstance(network, ControlNetUnion):
        tensors = write_original(tensors, CONTROL, controlnet_names(network.config))
    write_tensors(tensors, path)
