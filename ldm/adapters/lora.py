"""LoRA (Hu et al. 2021, "LoRA: Low-rank adaptation") and its kin: updates of weights.

W' = W + Σ ΔW(scale) is computed from the base weights each time and replaces them, so that a
picture costs no more with LoRAs than without, and removing them restores the very tensors that
were there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn

from ldm.adapters.changes import bias_change, changes_bias, changes_weight, weight_change
from ldm.adapters.lora_checks import check_factor_values
from ldm.adapters.lora_match import Adaptable, Matched, describe_left_out
from ldm.adapters.lora_scale import Scale, scales_of_parts
from ldm.adapters.textual_inversion import TextualInversions
from ldm.checkpoints.deferred import dense
from ldm.checkpoints.lora_first import keys_of_list
from ldm.checkpoints.lora_kinds import Factors
from ldm.checkpoints.lora_names import Module
from ldm.checkpoints.original import Rename
from ldm.checkpoints.plain import check_finite, check_real, is_finite
from ldm.checkpoints.tensors import checkpoint_of, read_content
from ldm.config.checking import shown
from ldm.errors import ArgumentError, CheckpointError
from ldm.fast.packed import plain_weight


@dataclass(frozen=True)
class Lora(Matched):
    """One file, matched to the modules of a pipeline."""

    path: Path
    scales: Mapping[str, float]  # of each part

    @property
    def scale(self) -> float:
        """The scale of the U-Net."""
        return self.scales["unet"]

    @property
    def active(self) -> bool:
        """Whether any of its scales is not 0."""
        return any(self.scales.values())

    @property
    def summary(self) -> str:
        """Say how much of the file is used, what is left out, and its words."""
        text = f"{self.path.name}: {self.applied} of {self.total} keys applied"
        if self.left_out:
            text += f"; left out: {describe_left_out(self.left_out)}"
        if self.words:
            text += f"; its words: {', '.join(self.words)}"
        return text


class Loras:
    """The LoRAs on a pipeline's parts: a mapping of names to files and scales."""

    def __init__(
        self,
        parts: Mapping[str, nn.Module],
        original: Rename,
        inversions: TextualInversions | None = None,
    ) -> None:
        """parts: "unet", "text_encoder", …; original: the U-Net's names in single files.

        inversions: the words of the text encoders, to which the files' own are added.
        """
        # `optimize` may put other layers in their places, but these share their parameters.
        self.model = Adaptable(parts, original)
        self.layers = self.model.layers
        self.inversions = inversions
        self.base: dict[Module, nn.Parameter] = {}  # of the weights that are changed now
        self.base_biases: dict[Module, nn.Parameter] = {}
        self.loaded: dict[str, Lora] = {}
        self.own: Lora | None = None  # the model's, which the scales of others leave alone

    def load(
        self,
        path: str | Path,
        name: str | None = None,
        scale: Scale = 1.0,
        partial: bool = False,
    ) -> Lora:
        """Put a file onto the model, beside those that are there.

        Raises CheckpointError for a file that is broken, of another kind, for another family or,
        unless ``partial``, with tensors that find no place; ArgumentError for a name in use; then
        nothing has changed.
        """
        path = Path(path).expanduser()
        name = name or path.stem
        if name in self.loaded:
            raise ArgumentError(f"a LoRA named {name!r} is loaded already; give another name")
        if not path.is_file():
            raise CheckpointError(f"{path} does not exist; give a LoRA file")
        lora = self.read(path, scale, partial)
        self.use(self.loaded | {name: lora})
        return lora

    def read(self, path: Path, scale: Scale = 1.0, partial: bool = False) -> Lora:
        """Match a file to the model. Raises CheckpointError where it does not fit."""
        scales = scales_of_parts(scale)
        tensors, metadata = read_lora(path)
        lora = self.match(path, tensors, metadata, partial)
        for factors in lora.updates.values():
            check_factor_values(path, factors)
        for word, vectors in lora.words.items():
            for value in vectors.values():
                check_real(path, word, value)
                check_finite(path, word, value.float())
        return replace(lora, scales=scales)

    def match(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        partial: bool = False,
    ) -> Lora:
        """Find the module of each tensor, as `Adaptable.match` does."""
        found = self.model.match(path, tensors, metadata, partial)
        return Lora(**vars(found), path=path, scales=scales_of_parts(1.0))

    def set_scales(self, scales: Mapping[str, Scale]) -> None:
        """Use the LoRAs named, with these scales, and no others; all stay loaded."""
        for name in scales:
            if name not in self.loaded:
                known = ", ".join(self.loaded) or "none"
                raise ArgumentError(f"no LoRA named {shown(name)} is loaded; there are: {known}")
        self.use(
            {
                name: replace(lora, scales=scales_of_parts(scales.get(name, 0.0)))
                for name, lora in self.loaded.items()
            }
        )

    def unload(self) -> None:
        """Remove all: the weights are those from before, bit-identical."""
        self.use({})

    def use(self, loras: dict[str, Lora]) -> None:
        """Use these LoRAs; if that fails, those from before."""
        words = words_of(loras)
        before, self.loaded = self.loaded, loras
        try:
            self.apply()
        except BaseException:
            self.loaded = before
            self.apply()
            raise
        if self.inversions is not None:
            self.inversions.use_bundled(words)

    def use_own(self, lora: Lora | None) -> None:
        """Use a LoRA that belongs to the model, beside those that are loaded; None for none.

        If that fails, the one from before.
        """
        before, self.own = self.own, lora
        try:
            self.apply()
        except BaseException:
            self.own = before
            self.apply()
            raise

    @torch.no_grad()
    def apply(self) -> None:
        """Compute the weights anew from the base. Raises CheckpointError where they overflow."""
        active = {name: lora for name, lora in self.loaded.items() if lora.active}
        if self.own is not None:
            active = {str(self.own.path): self.own} | active
        changes: dict[Module, list[tuple[Factors[Tensor], float]]] = {}
        for lora in active.values():
            for module, factors in lora.updates.items():
                if scale := lora.scales[module[0]]:
                    changes.setdefault(module, []).append((factors, scale))
        weights = {module for module, each in changes.items() if any(map(on_weight, each))}
        biases = {module for module, each in changes.items() if any(map(on_bias, each))}
        for module in self.base.keys() - weights:
            self.layers[module].weight = self.base.pop(module)
        for module in self.base_biases.keys() - biases:
            self.layers[module].bias = self.base_biases.pop(module)
        for module, each in changes.items():
            layer = self.layers[module]
            base = self.base.get(module)
            base = plain_weight(layer) if base is None else base  # type: ignore[arg-type]
            weight = base.float()
            if module in weights:
                self.base[module] = base
                added = (weight_change(weight, *c) for c in each if on_weight(c))
                layer.weight = changed(base, added, module, active)
            if module in biases and layer.bias is not None:
                own = cast(nn.Parameter, layer.bias)
                bias = self.base_biases.setdefault(module, own)
                added = (bias_change(bias.float(), weight, *c) for c in each if on_bias(c))
                layer.bias = changed(bias, added, module, active)


def on_weight(change: tuple[Factors[Tensor], float]) -> bool:
    """Whether a change is also one of a weight."""
    return changes_weight(change[0])


def on_bias(change: tuple[Factors[Tensor], float]) -> bool:
    """Whether a change is also one of a bias."""
    return changes_bias(change[0])


def changed(
    base: Tensor, added: Iterable[Tensor], module: Module, active: Iterable[str]
) -> nn.Parameter:
    """Return a parameter with all that is added. Raises CheckpointError where it overflows."""
    total = base.float().clone()
    try:
        for change in added:
            total += change
    except (ValueError, torch.linalg.LinAlgError) as error:
        raise CheckpointError(
            f"the change of {'.'.join(module)} by {', '.join(active)} cannot be computed "
            f"({str(error).splitlines()[0]}); get the file again, or leave it out"
        ) from None
    total = total.to(base.dtype)
    if not is_finite(total):
        raise CheckpointError(
            f"the weights of {'.'.join(module)} are not finite with "
            f"{', '.join(active)}; use smaller scales, or leave it out"
        )
    return nn.Parameter(total, requires_grad=False)


def words_of(loras: Mapping[str, Lora]) -> dict[str, dict[str, Tensor]]:
    """Return the words of the LoRAs in use. Raises ArgumentError where two differ."""
    words: dict[str, dict[str, Tensor]] = {}
    owners: dict[str, str] = {}
    for name, lora in loras.items():
        for word, vectors in lora.words.items() if lora.active else ():
            other = words.setdefault(word, vectors)
            if other.keys() != vectors.keys() or not all(
                torch.equal(other[part], vectors[part]) for part in other
            ):
                raise ArgumentError(
                    f"the LoRAs {owners[word]!r} and {name!r} both have a word {word!r}; use one "
                    "of them at a time"
                )
            owners[word] = name
    return words


def read_lora(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Read a LoRA file's tensors and metadata; also the bare lists of the first ones.

    Raises CheckpointError as ``read_checkpoint`` does.
    """
    content, metadata = read_content(path)
    if isinstance(content, list) and len(content) % 2 == 0:
        content = dict(zip(keys_of_list(len(content)), content, strict=True))
    tensors = checkpoint_of(path, content, metadata).tensors
    return {key: dense(value) for key, value in tensors.items()}, metadata
