"""Control-LoRA: a ControlNet as low-rank changes to the base's own U-Net.

W = W₀ + B A for each layer that the file has factors of ("….up" is B, "….down" is A), tensors of
the file in place of the base's where it has them whole, and the base's elsewhere.
Source: Stability AI's control-lora files; Hu et al. 2021, "LoRA", eq. 3.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ldm.checkpoints.deferred import Stored, dense
from ldm.checkpoints.folder import empty, fill
from ldm.checkpoints.original import controlnet_names
from ldm.checkpoints.plain import check_real
from ldm.config import ControlNetConfig
from ldm.control.controlnet import ControlNet
from ldm.errors import CheckpointError

MARK = "lora_controlnet"


def read_control_lora(
    path: Path,
    tensors: Mapping[str, Stored],
    config: ControlNetConfig,
    base: Mapping[str, Tensor],
    dtype: torch.dtype | None,
    device: torch.device,
) -> ControlNet:
    """Make the ControlNet of a file of original names; base: the U-Net's own weights.

    Raises CheckpointError for factors and tensors that do not fit the base.
    """
    module, rename = empty(ControlNet, config), controlnet_names(config)
    left = set(tensors) - {MARK}
    found: dict[str, Stored] = {}
    for name, expected in module.state_dict().items():
        place = rename(name).name
        stem = place.removesuffix(".weight")
        up, down = f"{stem}.up", f"{stem}.down"
        if place in tensors:
            value = dense(tensors[place])
        elif name in base:
            value = base[name].detach()
        else:
            raise CheckpointError(f"{path} lacks {place}, and the model has none; it is damaged")
        if place.endswith(".weight") and up in tensors and down in tensors:
            for factor in (place, up, down):
                if factor in tensors:
                    check_real(path, factor, tensors[factor])
            value = changed(path, stem, value, dense(tensors[up]), dense(tensors[down]))
            left -= {up, down}
        left.discard(place)
        # The base's own tensors are copied, since LoRAs change them in place.
        found[name] = (
            value.reshape(expected.shape).to(device, copy=True)
            if (value.numel() == expected.numel())
            else value
        )
    if left:
        raise CheckpointError(
            f"{path} has {sorted(left)[0]} and {len(left) - 1} more tensors that fit no layer of "
            "this model; it is a Control-LoRA for another model"
        )
    fill(module, found, path, dtype, device)
    return module


def changed(path: Path, stem: str, weight: Tensor, up: Tensor, down: Tensor) -> Tensor:
    """Return W₀ + B A, in float32: (out, …) like the weight."""
    ranked = up.ndim > 1 and down.ndim > 1
    b, a = (x.flatten(1).float() if ranked else x.float().reshape(1, -1) for x in (up, down))
    if not ranked or b.shape[1] != a.shape[0] or b.shape[0] * a.shape[1] != weight.numel():
        raise CheckpointError(
            f"{path}: {stem}.up {tuple(up.shape)} and .down {tuple(down.shape)} do not fit the "
            f"model's weight {tuple(weight.shape)}; it is a Control-LoRA for another model"
        )
    product = b.to(weight.device) @ a.to(weight.device)
    return (weight.float() + product.reshape(weight.shape)).to(weight.dtype)
