"""A model's single file → the parts of a pipeline, and back."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.distilled import original_names
from ldm.checkpoints.family import (
    FAMILIES,
    UNET,
    VAE,
    Family,
    detect,
    read_family,
)
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
    write_original,
)
from ldm.checkpoints.prediction import STATED_PREDICTION, read_beside
from ldm.checkpoints.tensors import read_checkpoint, to_save, write_tensors
from ldm.clip import CLIPTextEncoder
from ldm.config import Config, TAESDConfig, UNetConfig, VAEConfig
from ldm.errors import ArgumentError, CheckpointError
from ldm.loading.devices import vae_dtype
from ldm.loading.supplied import load_text_encoders
from ldm.loading.vae import load_vae
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
    tensors, metadata, global_step = read_checkpoint(path)
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

    wanted = {text.part: text.config for text in family.texts}
    supplied: dict[str, Any] = dict(load_text_encoders(text_encoders, wanted, dtype, device))
    if vae is not None:
        supplied["vae"] = load_vae(vae, family.vae, vae_dtype(dtype), device)
    check_whole(path, tensors, family, supplied)
    parts: dict[str, Any] = {
        "vae": supplied.get("vae") or part(AutoencoderKL, family.vae, VAE, names_of(family.vae)),
        "unet": part(UNet, family.unet, UNET, names_of(family.unet)),
        "scheduler": DDPMScheduler(family.scheduler),
        "force_zeros_for_empty_prompt": family.force_zeros_for_empty_prompt,
        "text_encoder": None,
        "tokenizer": None,
    }
    vocabulary = asset_path("weights") / "tokenizer"
    for text in family.texts:
        layers = text.config.num_hidden_layers
        parts[text.part] = supplied.get(text.part) or part(
            CLIPTextEncoder, text.config, text.prefix, TEXT_NAMES[text.names], layers
        )
        parts[text.part.replace("text_encoder", "tokenizer")] = CLIPTokenizer.from_pretrained(
            vocabulary, pad_token=text.pad_token
        )
    return parts


def check_whole(
    path: Path, tensors: Iterable[str], family: Family, supplied: Mapping[str, object]
) -> None:
    """Raise CheckpointError for parts that neither the file has nor an argument supplies."""
    wanted = [("vae", VAE, "a VAE", "vae")]
    wanted += [
        (
            text.part,
            text.prefix,
            f"the text encoder of width {text.config.hidden_size}",
            "text_encoder",
        )
        for text in family.texts
    ]
    names = list(tensors)
    lacking = [
        (what, option)
        for part, prefix, what, option in wanted
        if part not in supplied and not any(name.startswith(prefix) for name in names)
    ]
    if not lacking:
        return
    each = [
        f"lacks {what}; give one: --{option.replace('_', '-')} FILE" for what, option in lacking
    ]
    in_python = " and ".join(f"{option}=" for option in dict.fromkeys(o for _, o in lacking))
    folder = path.parent.parent
    whole = f"; or give the whole folder, {folder}" * (folder / "model_index.json").is_file()
    raise CheckpointError(f"{path} {', and '.join(each)}, or {in_python} in Python{whole}")


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


def family_of(parts: dict[str, Any]) -> Family:
    """Return the family whose layout the parts have. Raises CheckpointError for others."""
    width = parts["unet"].config.cross_attention_dim
    if width is None:
        raise CheckpointError(
            "this model draws pixels, for which there is no layout in a single file: "
            "save a folder instead"
        )
    if width not in FAMILIES:
        raise CheckpointError(
            f"the U-Net reads texts of width {width}; single files are known for the widths "
            f"{', '.join(map(str, FAMILIES))}: save a folder instead"
        )
    return read_family(FAMILIES[width])


def save_file(parts: dict[str, Any], path: Path, dtype: torch.dtype | None) -> None:
    """Write a single file under the original names. ``dtype`` None keeps each part's."""
    family = family_of(parts)
    if not isinstance(parts["vae"], AutoencoderKL):
        raise CheckpointError(
            "the model has a TAESD, for which there is no layout in a single file; save a folder, "
            "or give another VAE: --vae PATH"
        )
    tensors: dict[str, Tensor] = {}
    for prefix, module, rename, convolutions in (
        (UNET, parts["unet"], names_of(parts["unet"].config), False),
        (VAE, parts["vae"], names_of(parts["vae"].config), True),
        *((text.prefix, parts[text.part], TEXT_NAMES[text.names], False) for text in family.texts),
    ):
        tensors |= write_original(module.state_dict(), prefix, rename, convolutions)
    # Programs look for it in two places: in keys, and in the metadata.
    scheduler = parts["scheduler"].config
    if scheduler.prediction_type == "v_prediction":
        tensors["v_pred"] = torch.empty(0)
    if scheduler.rescale_betas_zero_snr:
        tensors["ztsnr"] = torch.empty(0)
    prediction = scheduler.prediction_type
    word = "v" if prediction == "v_prediction" else prediction
    metadata = {STATED_PREDICTION: word, "modelspec.predict_key": word}
    write_tensors(to_save(tensors, dtype), path, metadata)


def names_of(config: UNetConfig | VAEConfig) -> Rename:
    """Return the map from the names of a network's tensors to those of the original code."""
    if isinstance(config, VAEConfig):
        return vae_names(len(config.block_out_channels))
    attention = (kind.startswith("CrossAttn") for kind in config.up_block_types)
    return unet_names(config.layers, attention)
