"""LoRA: low-rank updates of weights (Hu et al. 2021, "LoRA: Low-rank adaptation").

W' = W + Σ scale · (α/rank) · up · down is computed from the base weights each time and replaces
them, so that a picture costs no more with LoRAs than without, and removing them restores the very
tensors that were there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from ldm.adapters.lora_checks import check_factor_values, check_shapes, dora_axis, pair
from ldm.checkpoints.family import FAMILIES, read_family
from ldm.checkpoints.lora_names import (
    CROSS_ATTENTION,
    ORIGINAL,
    Alphas,
    Directory,
    Factors,
    Module,
    group,
    text_width,
    unsupported,
)
from ldm.checkpoints.original import Rename
from ldm.checkpoints.tensors import read_checkpoint
from ldm.errors import ArgumentError, CheckpointError
from ldm.fast.packed import plain_weight


@dataclass(frozen=True)
class Lora:
    """One file, matched to the modules of a pipeline."""

    path: Path
    updates: dict[Module, Factors[Tensor]]
    applied: int  # tensors that found their module …
    total: int  # … of those in the file
    scale: float = 1.0

    @property
    def summary(self) -> str:
        """Say how much of the file is used."""
        return f"{self.path.name}: {self.applied} of {self.total} keys applied"


class Loras:
    """The LoRAs on a pipeline's parts: a mapping of names to files and scales."""

    def __init__(self, parts: dict[str, nn.Module], original: Rename) -> None:
        """parts: "unet", "text_encoder", …; original: the U-Net's names in single files."""
        # `optimize` may put other layers in their places, but these share their parameters.
        self.layers: dict[Module, nn.Linear | nn.Conv2d] = {
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

        Raises CheckpointError for a file that is broken, of another kind or for another family,
        ArgumentError for a name in use; then nothing has changed.
        """
        path = Path(path).expanduser()
        name = name or path.stem
        if name in self.loaded:
            raise ArgumentError(f"a LoRA named {name!r} is loaded already; give another name")
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; give a LoRA file")
        lora = self.read(path, scale)
        self.use(self.loaded | {name: lora})
        return lora

    def read(self, path: Path, scale: float = 1.0) -> Lora:
        """Match a file to the model. Raises CheckpointError where it does not fit."""
        check_scale(scale)
        checkpoint = read_checkpoint(path)
        lora = self.match(path, checkpoint.tensors, checkpoint.metadata)
        for factors in lora.updates.values():
            check_factor_values(path, factors)
        return replace(lora, scale=scale)

    def match(self, path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> Lora:
        """Find the module of each tensor, by names and shapes alone.

        Raises CheckpointError where none fits, one has another shape than its module, or some are
        of an adapter that is no LoRA.
        """
        groups, unknown = group(tensors)
        for kind, stems in unsupported(unknown).items():
            raise CheckpointError(
                f"{path} holds {kind} tensors ({len(stems)} of its {len(tensors)} keys, such as "
                f"{next(iter(stems))}), which are not supported; LoRA, LoCon and DoRA are"
            )
        self.check_family(path, text_width(groups))
        try:
            alphas = Alphas(metadata)
            updates, applied = {}, 0
            # Some files have a module twice; as in diffusers, its name there comes first.
            for stem in sorted(groups, key=lambda stem: bool(ORIGINAL.search(stem))):
                factors, module = groups[stem], self.directory.find(stem)
                if module is None or module in updates:
                    continue
                if factors.up is None or factors.down is None:
                    continue
                check_shapes(path, stem, factors, self.layers[module].weight)
                if factors.alpha is None:
                    factors = replace(factors, alpha=alphas.find(module, len(factors.down)))
                updates[module] = factors
                applied += len(factors.names)
        except (ValueError, OverflowError) as error:
            raise CheckpointError(f"{path}: {error}; get it again") from None
        if not updates:
            shown = ", ".join(list(tensors)[:3]) or "it is empty"
            raise CheckpointError(
                f"{path} has {len(tensors)} keys, none of which fits this model ({shown}); "
                "is it a LoRA for another family, or no LoRA?"
            )
        return Lora(path, updates, applied, len(tensors))

    def check_family(self, path: Path, width: int | None) -> None:
        """Raise CheckpointError for a LoRA whose U-Net reads texts of another width than ours."""
        ours = next(
            (
                layer.weight.shape[1]
                for (part, name), layer in self.layers.items()
                if part == "unet" and CROSS_ATTENTION.search(name)
            ),
            None,
        )
        if width is not None and ours is not None and width != ours:
            raise CheckpointError(
                f"{path} is a LoRA for {family_name(width)}, but this model is {family_name(ours)}"
                "; a LoRA works on its own family only"
            )

    def set_scales(self, scales: dict[str, float]) -> None:
        """Use the LoRAs named, with these scales, and no others; all stay loaded."""
        for name, scale in scales.items():
            if name not in self.loaded:
                known = ", ".join(self.loaded) or "none"
                raise ArgumentError(f"no LoRA named {name!r} is loaded; there are: {known}")
            check_scale(scale)
        self.use(
            {name: replace(lora, scale=scales.get(name, 0.0)) for name, lora in self.loaded.items()}
        )

    def unload(self) -> None:
        """Remove all: the weights are those from before, bit-identical."""
        self.use({})

    def use(self, loras: dict[str, Lora]) -> None:
        """Use these LoRAs; if that fails, those from before."""
        before, self.loaded = self.loaded, loras
        try:
            self.apply()
        except BaseException:
            self.loaded = before
            self.apply()
            raise

    @torch.no_grad()
    def apply(self) -> None:
        """Compute the weights anew from the base. Raises CheckpointError where they overflow."""
        active = {name: lora for name, lora in self.loaded.items() if lora.scale}
        changed = {module for lora in active.values() for module in lora.updates}
        for module in self.base.keys() - changed:
            self.layers[module].weight = self.base.pop(module)
        for module in changed:
            layer = self.layers[module]
            base = self.base.setdefault(module, plain_weight(layer))
            weight = base.float()
            total = weight.clone()
            for lora in active.values():
                if module in lora.updates:
                    total += difference(weight, lora.updates[module], lora.scale)
            total = total.to(base.dtype)
            if not total.isfinite().all():
                raise CheckpointError(
                    f"the weights of {'.'.join(module)} are not finite with "
                    f"{', '.join(active)}; use smaller scales, or leave it out"
                )
            layer.weight = nn.Parameter(total, requires_grad=False)


def difference(weight: Tensor, factors: Factors[Tensor], scale: float = 1.0) -> Tensor:
    """Compute what a LoRA adds to ``weight``, both float32 and of its shape.

    As in peft, a DoRA's scale multiplies the update that gives the direction, while the length
    stays as learnt; ComfyUI interpolates between the old weight and the new instead.
    """
    down, up = (tensor.to(weight) for tensor in pair(factors))
    rank = len(down)
    alpha = rank if factors.alpha is None else float(factors.alpha)
    if factors.mid is not None:  # LoCon's Tucker form: a small convolution between 1×1 ones
        delta = torch.einsum(
            "or,rskl,si->oikl", up.flatten(1), factors.mid.to(weight), down.flatten(1)
        )
    else:
        delta = up.flatten(1) @ down.flatten(1)
    delta = scale * alpha / rank * delta.reshape(weight.shape)
    lengths = factors.magnitude if factors.dora_scale is None else factors.dora_scale
    if lengths is None:
        return delta
    # Liu et al. 2024 ("DoRA"), eq. 5: the update gives a direction, its length is learnt apart.
    changed = weight + delta
    axis = dora_axis(factors, weight)
    others = [i for i in range(weight.ndim) if i != axis]
    present = torch.linalg.vector_norm(changed, dim=others, keepdim=True)
    present = present.clamp(min=torch.finfo(weight.dtype).eps)  # of a row of zeros
    return changed * (lengths.to(weight).reshape(present.shape) / present) - weight


def check_scale(scale: float) -> None:
    """Raise ArgumentError unless a scale is a finite number."""
    if not math.isfinite(scale):
        raise ArgumentError(f"scale is {scale}; expected a finite number, such as 0.8")


def family_name(width: int) -> str:
    """Name the family whose U-Net reads texts of this width, for messages."""
    name = read_family(FAMILIES[width]).name if width in FAMILIES else "no known family"
    return f"{name} (texts of width {width})"
