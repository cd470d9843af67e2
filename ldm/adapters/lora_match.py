"""The tensors of a LoRA file → the layers of a model, each of them accounted for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor, nn

from ldm.adapters.lora_checks import check_shapes, fits
from ldm.checkpoints.deferred import computable
from ldm.checkpoints.family import FAMILIES, read_family
from ldm.checkpoints.kinds import of_other_option
from ldm.checkpoints.lora_first import is_first_format, name_layers
from ldm.checkpoints.lora_kinds import SUPPORTED, Factors, group, rank_of, unsupported
from ldm.checkpoints.lora_models import other_model
from ldm.checkpoints.lora_names import (
    CROSS_ATTENTION,
    ORIGINAL,
    TEXT,
    Directory,
    Module,
    text_width,
)
from ldm.checkpoints.lora_settings import Alphas
from ldm.checkpoints.lora_words import Words, split_words
from ldm.checkpoints.original import Rename
from ldm.clip import CLIPTextEncoder
from ldm.errors import CheckpointError

LAYERS = (nn.Linear, nn.Conv2d, nn.LayerNorm, nn.GroupNorm)
Layer = nn.Linear | nn.Conv2d | nn.LayerNorm | nn.GroupNorm
# SDXL's files have vectors for both encoders; those of others say "clip_l", whatever it is.
WORD_PARTS = {"clip_l": "text_encoder", "clip_g": "text_encoder_2"}
LATENTS = 4  # channels of latents
# Why tensors are left out. The first is no loss.
REPEATED = "of layers that the file has twice"
INCOMPLETE = "incomplete"
UNKNOWN = "unknown"
OUTPUT = "words' vectors for the text encoder's output, which are not supported"


@dataclass(frozen=True)
class Matched:
    """What a file changes, and what of it is left out."""

    updates: dict[Module, Factors[Tensor]]
    words: dict[str, dict[str, Tensor]]  # word → text encoder → vectors (n, D)
    applied: int  # tensors that found their place …
    total: int  # … of those in the file
    left_out: dict[str, list[str]]  # reason → names of the others


@dataclass
class Account:
    """The tensors of a file while they are matched."""

    updates: dict[Module, Factors[Tensor]] = field(default_factory=dict)
    words: dict[str, dict[str, Tensor]] = field(default_factory=dict)
    applied: int = 0
    left_out: dict[str, list[str]] = field(default_factory=dict)
    unet_layers: list[str] = field(default_factory=list)  # names of those that found no place

    def leave(self, reason: str, names: Iterable[str]) -> None:
        """Leave tensors out."""
        self.left_out.setdefault(reason, []).extend(names)


class Adaptable:
    """The layers of a model that a LoRA file may change."""

    def __init__(self, parts: Mapping[str, nn.Module], original: Rename) -> None:
        """parts: "unet", "text_encoder", …; original: the U-Net's names in single files."""
        self.layers: dict[Module, Layer] = {
            (part, path): layer
            for part, module in parts.items()
            for path, layer in module.named_modules()
            if isinstance(layer, LAYERS) and layer.weight is not None
        }
        self.directory = Directory(self.layers, original)
        self.word_widths = {
            part: module.config.hidden_size
            for part, module in parts.items()
            if isinstance(module, CLIPTextEncoder)
        }

    @property
    def text_width(self) -> int | None:
        """The width of the texts that the U-Net reads."""
        for (part, name), layer in self.layers.items():
            if part == "unet" and CROSS_ATTENTION.search(name):
                return layer.weight.shape[1]
        return None

    @property
    def family(self) -> str:
        """The model's family, for messages."""
        width = self.text_width
        return "no known family" if width is None else family_name(width)

    def match(
        self,
        path: Path,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        partial: bool = False,
    ) -> Matched:
        """Find the layer of each tensor, by names and shapes alone.

        Raises CheckpointError where the U-Net's fit nowhere, one has another shape than its
        layer, some are of a kind that is not supported or, unless ``partial``, some find no place.
        """
        account = Account()
        try:
            named = dict(tensors)
            if is_first_format(list(tensors)):
                shapes = {module: tuple(x.weight.shape) for module, x in self.layers.items()}
                names = name_layers(tensors, metadata, shapes)
                named = {names.get(key, key): value for key, value in tensors.items()}
            words, rest = split_words(named, metadata)
            groups, unknown = group(rest)
            for kind, stems in unsupported(unknown).items():
                raise CheckpointError(
                    f"{path} holds {kind} tensors ({len(stems)} of its {len(tensors)} keys, such "
                    f"as {next(iter(stems))}), which are not supported; {SUPPORTED}"
                )
            self.check_family(path, text_width(groups))
            self.place(path, groups, Alphas(metadata, path), account)
        except (ValueError, OverflowError) as error:
            raise CheckpointError(f"{path}: {error}; get it again") from None
        account.leave(UNKNOWN, unknown) if unknown else None
        self.place_words(path, words, rest=named, account=account)
        self.judge(path, list(tensors), account, partial)
        return Matched(
            account.updates, account.words, account.applied, len(tensors), account.left_out
        )

    def check_family(self, path: Path, width: int | None) -> None:
        """Raise CheckpointError for a LoRA whose U-Net reads texts of another width than ours."""
        ours = self.text_width
        if width is not None and ours is not None and width != ours:
            raise CheckpointError(
                f"{path} is a LoRA for {family_name(width)}, but this model is {family_name(ours)}"
                "; a LoRA works on its own family only"
            )

    def place(
        self, path: Path, groups: dict[str, Factors[Tensor]], alphas: Alphas, account: Account
    ) -> None:
        """Find the layer of each group of tensors."""
        # Some files have a module twice; as in diffusers, its name there comes first.
        for stem in sorted(groups, key=lambda stem: bool(ORIGINAL.search(stem))):
            factors = groups[stem]
            names = factors.names.values()
            modules = self.directory.find(stem)
            if not modules:
                account.leave(self.reason(stem), names)
                if not TEXT.match(stem):
                    account.unet_layers.append(stem)
                continue
            if not factors.kinds or factors.left:
                account.leave(INCOMPLETE, names)
                continue
            module = self.likeliest(modules, factors)
            if module in account.updates:
                account.leave(REPEATED, names)
                continue
            layer = self.layers[module]
            factors = widened(factors, module, layer.weight)
            check_shapes(path, stem, factors, layer.weight, layer.bias)
            if "alpha" not in factors.tensors and (rank := rank_of(factors)):
                factors = replace(factors, alpha=alphas.find(module, rank))
            account.updates[module] = factors
            account.applied += len(names)

    def likeliest(self, modules: list[Module], factors: Factors[Tensor]) -> Module:
        """Choose the first module whose shape the tensors have, else the first."""
        if len(modules) > 1:
            for module in modules:
                layer = self.layers[module]
                if fits(factors, layer.weight, layer.bias):
                    return module
        return modules[0]

    def reason(self, stem: str) -> str:
        """Say why a layer of this name has no place here."""
        if other := other_model([stem]):
            return f"for {other}"
        if TEXT.match(stem):
            return "for another text encoder"
        return "for layers that this model does not have"

    def place_words(
        self, path: Path, words: Words, rest: Mapping[str, Tensor], account: Account
    ) -> None:
        """Find the text encoder of each word's vectors, by name or by width.

        Raises CheckpointError for vectors that are none.
        """
        for word, keys in words.items():
            for kind, key in keys.items():
                vectors = rest[key]
                if vectors.ndim not in (1, 2) or not vectors.numel():
                    raise CheckpointError(
                        f"{path}: {key} has shape {tuple(vectors.shape)}; expected vectors of a "
                        f"word, such as (2, 768); get it again"
                    )
                vectors = computable(vectors.reshape(-1, vectors.shape[-1]))
                part = self.word_part(kind, vectors.shape[1])
                if kind.endswith("_out"):
                    account.leave(OUTPUT, [key])
                elif part is None or part in account.words.get(word, {}):
                    account.leave("words for text encoders that this model does not have", [key])
                else:
                    account.words.setdefault(word, {})[part] = vectors
                    account.applied += 1

    def word_part(self, kind: str, width: int) -> str | None:
        """Return the text encoder that a word's vectors of this name and width are for."""
        named = WORD_PARTS.get(kind)
        if named in self.word_widths and self.word_widths[named] == width:
            return named
        if kind in WORD_PARTS and len(self.word_widths) > 1:
            return None
        return next((part for part, own in self.word_widths.items() if own == width), None)

    def judge(self, path: Path, keys: list[str], account: Account, partial: bool) -> None:
        """Raise CheckpointError for a file of which nothing fits, or not enough."""
        lost = account.unet_layers
        if lost and not any(part == "unet" for part, _ in account.updates):
            other = other_model(lost)
            what = f"is a LoRA for {other}" if other else "is a LoRA for another model"
            raise CheckpointError(
                f"{path} {what}: none of its {len(lost)} layers of a U-Net or transformer (such "
                f"as {lost[0]}) fits this model, {self.family}; a LoRA works on its own family only"
            )
        if not account.updates and not account.words:
            if instead := of_other_option(keys):
                raise CheckpointError(
                    f"{path} is {instead[0]}, not a LoRA; give it as {instead[1]}"
                )
            shown = ", ".join(keys[:3]) or "it is empty"
            raise CheckpointError(
                f"{path} has {len(keys)} keys, none of which fits this model ({shown}); "
                "is it a LoRA for another family, or no LoRA?"
            )
        unfit = {why: names for why, names in account.left_out.items() if why != REPEATED}
        if unfit and not partial:
            raise CheckpointError(
                f"{path}: {account.applied} of {len(keys)} keys fit this model, {self.family}; "
                f"the others are {describe_left_out(unfit)}. "
                "Give --partial-lora (partial=True) to use what fits"
            )


def widened(factors: Factors[Tensor], module: Module, weight: Tensor) -> Factors[Tensor]:
    """Give a change of a U-Net's first layer the further inputs of inpainting and editing models.

    As in A1111's web UI, it leaves those alone: the latents are the first.
    """
    dora = {"dora_scale", "magnitude"} & factors.tensors.keys()
    if module != ("unet", "conv_in") or dora:
        return factors
    tensors = dict(factors.tensors)
    for role in ("down", "diff"):
        tensor = tensors.get(role)
        if tensor is not None and tensor.ndim == 4 and tensor.shape[1] == LATENTS:
            extra = max(weight.shape[1] - LATENTS, 0)
            tensors[role] = nn.functional.pad(tensor, (0, 0, 0, 0, 0, extra))
    return replace(factors, tensors=tensors)


def describe_left_out(left_out: Mapping[str, list[str]]) -> str:
    """Describe what is left out: "912 for Flux (such as …), 2 unknown (such as …)"."""
    return ", ".join(f"{len(names)} {why} (such as {names[0]})" for why, names in left_out.items())


def family_name(width: int) -> str:
    """Name the family whose U-Net reads texts of this width, for messages."""
    name = read_family(FAMILIES[width]).name if width in FAMILIES else "no known family"
    return f"{name} (texts of width {width})"
