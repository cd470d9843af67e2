"""LoRA: low-rank updates of weights (Hu et al. 2021, "LoRA: Low-rank adaptation").

W' = W + Σ scale · (α/rank) · up · down, computed from the base weights each time and put in their
place, so that a picture costs no more with LoRAs than without, and taking them off gives back the
very tensors that were there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.checkpoints.lora_names import Directory, Factors, Module, group
from ldm.checkpoints.original import Rename
from ldm.checkpoints.tensors import read_checkpoint
from ldm.errors import ArgumentError, CheckpointError


@dataclass
class Lora:
    """One file, matched to the modules of a pipeline."""

    path: Path
    updates: dict[Module, Factors]
    applied: int  # tensors that found their module …
    total: int  # … of those in the file
    scale: float = 1.0

    @property
    def summary(self) -> str:
        """How much of the file is used."""
        return f"{self.path.name}: {self.applied} of {self.total} keys applied"


class Loras:
    """The LoRAs on a pipeline's parts: a mapping of names to files and scales."""

    def __init__(self, parts: dict[str, nn.Module], original: Rename) -> None:
        """parts: "unet", "text_encoder", …; original: the U-Net's names in single files."""
        self.layers: dict[Module, nn.Module] = {
            (part, path): layer
            for part, module in parts.items()
            for path, layer in module.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d)
        }
        self.directory = Directory(self.layers, original)
        self.base: dict[Module, nn.Parameter] = {}  # of the layers that are changed now
        self.loaded: dict[str, Lora] = {}

    def load(self, path: str | Path, name: str | None = None, scale: float = 1.0) -> Lora:
        """Put a file onto the model, beside those that are there.

        Raises CheckpointError where none of it fits the model, ArgumentError for a name in use.
        """
        path = Path(path).expanduser()
        name = name or path.stem
        if name in self.loaded:
            raise ArgumentError(f"a LoRA named {name!r} is loaded already; give another name")
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; give a LoRA file")
        lora = self.read(path, scale)
        self.loaded[name] = lora
        self.apply()
        return lora

    def read(self, path: Path, scale: float = 1.0) -> Lora:
        """Match a file to the model. Raises CheckpointError where none of it fits."""
        tensors = read_checkpoint(path).tensors
        groups, unknown = group(tensors)
        updates, strangers, applied = {}, list(unknown), 0
        for stem, factors in groups.items():
            module = self.directory.find(stem)
            if module is None or factors.up is None or factors.down is None:
                strangers += factors.names
                continue
            check_shapes(path, stem, factors, self.layers[module].weight)
            updates[module] = factors
            applied += len(factors.names)
        if not updates:
            shown = ", ".join(strangers[:3])
            raise CheckpointError(
                f"{path} has {len(tensors)} keys, none of which fits this model ({shown}, …); "
                "is it a LoRA for another family, or no LoRA?"
            )
        return Lora(path, updates, applied, len(tensors), scale)

    def set_scales(self, scales: dict[str, float]) -> None:
        """Use the LoRAs named, with these scales, and no others; all stay loaded."""
        for name in scales:
            if name not in self.loaded:
                known = ", ".join(self.loaded) or "none"
                raise ArgumentError(f"no LoRA named {name!r} is loaded; there are: {known}")
        for name, lora in self.loaded.items():
            lora.scale = scales.get(name, 0.0)
        self.apply()

    def unload(self) -> None:
        """Take all off: the weights are those from before, to the bit."""
        self.loaded.clear()
        self.apply()

    @torch.no_grad()
    def apply(self) -> None:
        """Compute the weights anew from the base."""
        active = [lora for lora in self.loaded.values() if lora.scale]
        changed = {module for lora in active for module in lora.updates}
        for module in self.base.keys() - changed:
            self.layers[module].weight = self.base.pop(module)
        for module in changed:
            layer = self.layers[module]
            base = self.base.setdefault(module, layer.weight)
            weight = base.float()
            total = weight.clone()
            for lora in active:
                if module in lora.updates:
                    total += lora.scale * difference(weight, lora.updates[module])
            layer.weight = nn.Parameter(total.to(base.dtype), requires_grad=False)


def difference(weight: Tensor, factors: Factors) -> Tensor:
    """What a LoRA of scale 1 adds to ``weight``, both float32 and of its shape."""
    down, up = (tensor.to(weight) for tensor in (factors.down, factors.up))
    rank = len(down)
    scale = 1.0 if factors.alpha is None else float(factors.alpha) / rank
    if factors.mid is not None:  # LoCon's Tucker form: a small convolution between 1×1 ones
        delta = torch.einsum(
            "or,rskl,si->oikl", up.flatten(1), factors.mid.to(weight), down.flatten(1)
        )
    else:
        delta = up.flatten(1) @ down.flatten(1)
    delta = scale * delta.reshape(weight.shape)
    if factors.dora_scale is None:
        return delta
    # Liu et al. 2024 ("DoRA"), eq. 5: the update gives a direction, its length is learnt apart.
    changed = weight + delta
    magnitude = factors.dora_scale.to(weight).flatten()
    if len(magnitude) == len(weight):
        length, shape = changed.flatten(1).norm(dim=1), (-1, *(1,) * (weight.ndim - 1))
    else:  # LyCORIS' older form: a length for each input
        length = changed.transpose(0, 1).flatten(1).norm(dim=1)
        shape = (1, -1, *(1,) * (weight.ndim - 2))
    return changed * (magnitude / length).view(shape) - weight


def check_shapes(path: Path, name: str, factors: Factors, weight: Tensor) -> None:
    """Raise CheckpointError unless the factors' product has the weight's shape."""
    down, up = factors.down, factors.up
    inner = down.flatten(1).shape[1] if factors.mid is None else weight[0].numel()
    fits = up.shape[0] == weight.shape[0] and inner == weight[0].numel()
    if factors.mid is None:
        fits = fits and up.flatten(1).shape[1] == len(down)
    if not fits:
        raise CheckpointError(
            f"{path}: {name} has factors {tuple(up.shape)} and {tuple(down.shape)} for a weight "
            f"{tuple(weight.shape)}; it is for another family of models"
        )
