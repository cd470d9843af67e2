"""A model's single file → the parts of a pipeline."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.distilled import original_names
from ldm.checkpoints.family import FAMILIES, UNET, VAE, Family, detect, read_family
from ldm.checkpoints.folder import M, empty, fill
from ldm.checkpoints.original import (
    Rename,
    clip_names,
    left_over,
    open_clip_names,
    read_original,
    unet_names,
    use_ema,
    vae_names,
)
from ldm.checkpoints.prediction import read_beside
from ldm.checkpoints.renamed import undo_renaming
from ldm.checkpoints.tensors import read_checkpoint
from ldm.clip import CLIPTextEncoder
from ldm.config import Config, TAESDConfig, UNetConfig, VAEConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.loading.devices import vae_dtype
from ldm.loading.supplied import encoders_among, load_text_encoders
from ldm.loading.vae import find_vae, load_vae
from ldm.scheduler import DDPMScheduler
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

MARKERS = ("v_pred", "ztsnr", "edm_mean", "edm_std", "edm_vpred.sigma_max", "edm_vpred.sigma_min")
TEXT_NAMES: dict[str, Rename] = {"clip": clip_names, "open_clip": open_clip_names}


def load_file(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    prediction_type: str | None = None,
    ema: bool = False,
    vae: Path | None = None,
    text_encoders: Sequence[Path] = (),
) -> dict[str, Any]:
    """Load the arguments of ``Pipeline`` from a single file under the original names.

    vae, text_encoders: take these parts, which the file may lack, from there.
    Raises CheckpointError for a file that is broken, incomplete or of another kind.
    """
    stored, metadata, global_step = read_checkpoint(path)
    tensors = undo_renaming(stored)
    if "conv_in.weight" in tensors:  # a U-Net alone, under diffusers' names
        every = {key: tuple(value.shape) for key, value in tensors.items()}
        tensors = original_names(tensors, every) or tensors
    if "input_blocks.0.0.weight" in tensors:  # a U-Net alone
        markers = {name: tensors.pop(name) for name in MARKERS if name in tensors}
        tensors = {f"{UNET}{key}": value for key, value in tensors.items()} | markers
    if ema:
        try:
            use_ema(tensors, UNET)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; leave ema out") from None
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    family = detect(shapes, metadata, str(path), global_step, prediction_type, read_beside(path))
    if not family.certain:
        warnings.warn(
            f"{path} does not say what its U-Net predicts; {family.scheduler.prediction_type} is "
            "taken, which most models of its kind do: if the picture is noise, give the other one "
            "of 'epsilon' and 'v_prediction' as prediction_type",
            stacklevel=2,
        )

    vae_prefix = find_vae(tensors)
    places = find_texts(tensors, family)
    lacking = [text for text in family.texts if text.part not in places]
    wanted = {text.part: text.config for text in family.texts}
    supplied: dict[str, Any] = dict(load_text_encoders(text_encoders, wanted, dtype, device))
    check_whole(
        path,
        vae is None and vae_prefix is None,
        [text.config.hidden_size for text in lacking if text.part not in supplied],
    )

    def part(
        module_class: type[M],
        config: Config,
        prefix: str,
        rename: Rename,
        layers: int | None = None,
    ) -> M:
        module = empty(module_class, config)
        expected = {key: value.shape for key, value in module.state_dict().items()}
        found = read_original(tensors, expected, prefix, rename)
        if unknown := left_over(tensors, prefix, layers):
            raise CheckpointError(
                f"{path} has {unknown[0]} and {len(unknown) - 1} more tensors that no "
                f"{family.name} has; it is of another architecture, which is not supported"
            )
        to = vae_dtype(dtype) if module_class is AutoencoderKL else dtype
        fill(module, found, path, to, device)
        return module

    if vae is not None:
        supplied["vae"] = load_vae(vae, family.vae, vae_dtype(dtype), device)
    parts: dict[str, Any] = {
        "vae": supplied.get("vae")
        or part(AutoencoderKL, family.vae, vae_prefix or VAE, names_of(family.vae)),
        "unet": part(UNet, family.unet, UNET, names_of(family.unet)),
        "scheduler": DDPMScheduler(family.scheduler),
        "force_zeros_for_empty_prompt": family.force_zeros_for_empty_prompt,
        "text_encoder": None,
        "tokenizer": None,
    }
    vocabulary = asset_path("weights") / "tokenizer"
    for text in family.texts:
        # OpenCLIP's encoders have a last layer whose states no model reads.
        layers = text.config.num_hidden_layers if text.names == "open_clip" else None
        parts[text.part] = supplied.get(text.part) or part(
            CLIPTextEncoder, text.config, *places[text.part], layers
        )
        parts[text.part.replace("text_encoder", "tokenizer")] = CLIPTokenizer.from_pretrained(
            vocabulary, pad_token=text.pad_token
        )
    return parts


def find_texts(tensors: dict[str, Stored], family: Family) -> dict[str, tuple[str, Rename]]:
    """Return where a file has the text encoders of a family: part → (prefix, names).

    Converters put them elsewhere than the original code, where their width tells them apart.
    """
    others = {
        width: (prefix, names) for width, _, prefix, names in encoders_among(tensors) if prefix
    }
    found: dict[str, tuple[str, Rename]] = {}
    for text in family.texts:
        if any(key.startswith(text.prefix) for key in tensors):
            found[text.part] = text.prefix, TEXT_NAMES[text.names]
        elif place := others.get(text.config.hidden_size):
            found[text.part] = place
    return found


def check_whole(path: Path, without_vae: bool, widths: Sequence[int]) -> None:
    """Raise CheckpointError for parts that neither the file nor the user gives."""
    what = ["a VAE"] * without_vae
    if widths:
        encoders = "the text encoder" if len(widths) == 1 else "the text encoders"
        what.append(f"{encoders} of width {' and '.join(map(str, widths))}")
    options = ["vae"] * without_vae + ["text_encoder"] * bool(widths)
    if not what:
        return
    flags = " ".join(f"--{option.replace('_', '-')} FILE" for option in options)
    keywords = " and ".join(f"{option}=" for option in options)
    them = "one" if without_vae + len(widths) == 1 else "them"
    folder = path.parent.parent
    whole = f"; or give the whole folder, {folder}" * (folder / "model_index.json").is_file()
    raise CheckpointError(
        f"{path} lacks {' and '.join(what)}; give {them}: {flags}, or {keywords} in Python{whole}"
    )


def replace_parts(
    parts: dict[str, Any],
    path: Path,
    vae: Path | None,
    text_encoders: Sequence[Path],
    device: torch.device,
) -> None:
    """Put another VAE and other text encoders in the places of a folder's.

    Raises ArgumentError for a model without such parts, CheckpointError for parts that do not fit.
    """
    if vae is not None:
        old = parts["vae"]
        if old is None:
            raise ArgumentError(f"{path} draws pixels and has no VAE; leave vae out")
        width = parts["unet"].config.cross_attention_dim
        config = old.config
        if isinstance(config, TAESDConfig) and width in FAMILIES:
            config = read_family(FAMILIES[width]).vae
        parts["vae"] = load_vae(vae, config, next(old.parameters()).dtype, device)
    if text_encoders:
        names = ("text_encoder", "text_encoder_2")
        old_ones = {name: parts[name] for name in names if parts.get(name) is not None}
        if not old_ones:
            raise ArgumentError(f"{path} reads no text; leave text_encoder out")
        dtype = next(next(iter(old_ones.values())).parameters()).dtype
        wanted = {name: module.config for name, module in old_ones.items()}
        parts |= load_text_encoders(text_encoders, wanted, dtype, device)


def names_of(config: UNetConfig | VAEConfig) -> Rename:
    """Return the map from the names of a network's tensors to those of the original code."""
    if isinstance(config, VAEConfig):
        return vae_names(len(config.block_out_channels))
    attention = (kind.startswith("CrossAttn") for kind in config.up_block_types)
    return unet_names(config.layers, attention)
