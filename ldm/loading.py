"""A model's files → the parts of a pipeline, and back."""

from __future__ import annotations

import warnings
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm import __version__
from ldm.assets import asset_path
from ldm.checkpoints.family import (
    FAMILIES,
    SAID_PREDICTION,
    UNET,
    VAE,
    Family,
    detect,
    read_family,
)
from ldm.checkpoints.folder import M, empty, fill, load_component, save_component
from ldm.checkpoints.names import to_ours
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
from ldm.checkpoints.tensors import read_checkpoint, to_save, write_tensors
from ldm.clip import CLIPTextEncoder
from ldm.config import Config, SchedulerConfig, UNetConfig, VAEConfig, read_json, write_json
from ldm.errors import CheckpointError
from ldm.preview import LinearPreview
from ldm.scheduler import DDPMScheduler
from ldm.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

PREVIEW = Path("vae", "preview.json")  # ours; diffusers does not look at it
LAYOUT = "0.35.0"  # of diffusers, whose layout and names are written
# diffusers has a class for each task; which task it is, the arguments of a call say.
PIPELINES = frozenset(
    """StableDiffusionPipeline StableDiffusionImg2ImgPipeline StableDiffusionInpaintPipeline
    StableDiffusionXLPipeline StableDiffusionXLImg2ImgPipeline StableDiffusionXLInpaintPipeline
    LatentConsistencyModelPipeline LatentConsistencyModelImg2ImgPipeline""".split()
)


TEXT_NAMES: dict[str, Rename] = {"clip": clip_names, "open_clip": open_clip_names}


@dataclass(frozen=True)
class Defaults(Config):
    """What a call uses by default: ``generation_config.json``, else diffusers' values."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5

    @classmethod
    def of(cls, unet: UNetConfig) -> Defaults:
        """Those of diffusers' pipeline for a U-Net."""
        if unet.time_cond_proj_dim is not None:  # LCM
            return cls(4, 8.5)
        return cls() if unet.addition_embed_type is None else cls(guidance_scale=5.0)


def load_folder(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    variant: str | None = None,
    prediction_type: str | None = None,
) -> dict[str, Any]:
    """The arguments of ``Pipeline`` from a diffusers folder.

    Raises CheckpointError for a folder that is broken or not supported.
    """
    index = read_json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if kind not in PIPELINES:
        raise CheckpointError(
            f"{folder / 'model_index.json'} is of a {kind}; "
            "only models of the Stable Diffusion family are supported"
        )
    scheduler = SchedulerConfig.from_file(folder / "scheduler" / "scheduler_config.json")
    if prediction_type:
        scheduler = replace(scheduler, prediction_type=prediction_type)
    extra = folder / "generation_config.json"
    defaults = Defaults.from_file(extra) if extra.exists() else None
    parts: dict[str, Any] = {
        "vae": load_component(AutoencoderKL, folder / "vae", vae_dtype(dtype), device, variant),
        "unet": load_component(UNet, folder / "unet", dtype, device, variant),
        "scheduler": DDPMScheduler(scheduler),
        "defaults": defaults,
        "force_zeros_for_empty_prompt": bool(index.get("force_zeros_for_empty_prompt", False)),
    }
    if values := read_json(folder / PREVIEW, optional=True):
        vae = parts["vae"]
        vae.preview = LinearPreview.of(values, vae.config.latent_channels, folder / PREVIEW)
    for end in ("", "_2"):
        encoder, tokenizer = f"text_encoder{end}", f"tokenizer{end}"
        told = index.get(encoder)
        if not isinstance(told, list) or None in told:  # SDXL's refiner has no first one
            parts[encoder] = parts[tokenizer] = None
            continue
        parts[encoder] = load_component(CLIPTextEncoder, folder / encoder, dtype, device, variant)
        parts[tokenizer] = CLIPTokenizer.from_pretrained(folder / tokenizer)
    return parts


def load_file(
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    prediction_type: str | None = None,
    ema: bool = False,
) -> dict[str, Any]:
    """The arguments of ``Pipeline`` from a single file under the original names.

    Raises CheckpointError for a file that is broken, incomplete or of something else.
    """
    tensors, metadata, global_step = read_checkpoint(path)
    if ema:
        try:
            use_ema(tensors, UNET)
        except CheckpointError as error:
            raise CheckpointError(f"{path}: {error}; leave ema out") from None
    shapes = {key: tuple(value.shape) for key, value in tensors.items()}
    family = detect(shapes, metadata, str(path), global_step, prediction_type)
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

    parts: dict[str, Any] = {
        "vae": part(AutoencoderKL, family.vae, VAE, names_of(family.vae)),
        "unet": part(UNet, family.unet, UNET, names_of(family.unet)),
        "scheduler": DDPMScheduler(family.scheduler),
        "force_zeros_for_empty_prompt": family.force_zeros_for_empty_prompt,
        "text_encoder": None,
        "tokenizer": None,
    }
    vocabulary = asset_path("weights") / "tokenizer"
    for text in family.texts:
        layers = text.config.num_hidden_layers
        parts[text.part] = part(
            CLIPTextEncoder, text.config, text.prefix, TEXT_NAMES[text.names], layers
        )
        parts[text.part.replace("text_encoder", "tokenizer")] = CLIPTokenizer.from_pretrained(
            vocabulary, pad_token=text.pad_token
        )
    return parts


def vae_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """The VAE's, of a model in ``dtype``: Stable Diffusion's overflows in float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def load_vae(
    path: Path, config: VAEConfig, dtype: torch.dtype | None, device: torch.device
) -> AutoencoderKL:
    """A VAE from its folder, or from a file of original or diffusers' names.

    A file has no config: it must be of the sizes in ``config``.
    Raises CheckpointError for what is broken or does not fit.
    """
    if path.is_dir():
        inner = path / "vae"
        return load_component(AutoencoderKL, inner if inner.is_dir() else path, dtype, device)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a VAE's folder or file")
    module = empty(AutoencoderKL, config)
    expected = module.state_dict()
    tensors = read_checkpoint(path).tensors
    if any(".down_blocks." in key for key in tensors):
        tensors = to_ours(tensors, expected)
    else:
        prefix = VAE if any(key.startswith(VAE) for key in tensors) else ""
        shapes = {key: value.shape for key, value in expected.items()}
        tensors = read_original(tensors, shapes, prefix, names_of(config))
    fill(module, tensors, path, dtype, device)
    return module


def family_of(parts: dict[str, Any]) -> Family:
    """The family whose single-file layout the parts have. Raises CheckpointError for others."""
    width = parts["unet"].config.cross_attention_dim
    if width not in FAMILIES:
        raise CheckpointError(
            f"the U-Net reads texts of width {width}; single files are known for the widths "
            f"{', '.join(map(str, FAMILIES))}: save a folder instead"
        )
    return read_family(FAMILIES[width])


def save_file(parts: dict[str, Any], path: Path, dtype: torch.dtype | None) -> None:
    """Write a single file under the original names. ``dtype`` None keeps each part's."""
    family = family_of(parts)
    tensors: dict[str, Tensor] = {}
    for prefix, module, rename, convolutions in (
        (UNET, parts["unet"], names_of(parts["unet"].config), False),
        (VAE, parts["vae"], names_of(parts["vae"].config), True),
        *((text.prefix, parts[text.part], TEXT_NAMES[text.names], False) for text in family.texts),
    ):
        tensors |= write_original(module.state_dict(), prefix, rename, convolutions)
    # Told in all ways that programs look for: by keys, and by the metadata.
    scheduler = parts["scheduler"].config
    if scheduler.prediction_type == "v_prediction":
        tensors["v_pred"] = torch.empty(0)
    if scheduler.rescale_betas_zero_snr:
        tensors["ztsnr"] = torch.empty(0)
    said = scheduler.prediction_type
    metadata = {SAID_PREDICTION: "v" if said == "v_prediction" else said}
    write_tensors(to_save(tensors, dtype), path, metadata)


def names_of(config: UNetConfig | VAEConfig) -> Rename:
    """Where the original code has the tensors of a network."""
    if isinstance(config, VAEConfig):
        return vae_names(len(config.block_out_channels))
    attention = (kind.startswith("CrossAttn") for kind in config.up_block_types)
    return unet_names(config.layers_per_block, attention)


def save_folder(parts: dict[str, Any], folder: Path, dtype: torch.dtype | None) -> None:
    """Write what ``load_folder`` reads, and diffusers too. ``dtype`` None keeps each part's."""
    index: dict[str, Any] = {
        "_class_name": class_name(parts),
        "_diffusers_version": LAYOUT,
        "_ldm_version": __version__,
        "feature_extractor": [None, None],
        "scheduler": ["diffusers", parts["scheduler"].config.sampler_class],
        "text_encoder": [None, None],
        "tokenizer": [None, None],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    for end in ("", "_2"):
        encoder, tokenizer = parts[f"text_encoder{end}"], parts[f"tokenizer{end}"]
        if encoder is None:
            continue
        save_component(encoder, folder / f"text_encoder{end}", dtype)
        tokenizer.save_pretrained(folder / f"tokenizer{end}")
        index[f"text_encoder{end}"] = ["transformers", encoder.config.architectures[0]]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
    if "XL" in index["_class_name"]:
        index["image_encoder"] = [None, None]
        index["force_zeros_for_empty_prompt"] = parts["force_zeros_for_empty_prompt"]
        index["requires_aesthetics_score"] = "Img2Img" in index["_class_name"]
    else:
        index |= {"requires_safety_checker": False, "safety_checker": [None, None]}
    save_component(parts["vae"], folder / "vae", dtype)
    if parts["vae"].preview is not None:
        write_json(folder / PREVIEW, parts["vae"].preview.values())
    save_component(parts["unet"], folder / "unet", dtype)
    write_json(folder / "scheduler" / "scheduler_config.json", parts["scheduler"].config.to_dict())
    write_json(folder / "generation_config.json", vars(parts["defaults"]))
    write_json(folder / "model_index.json", index)


def class_name(parts: dict[str, Any]) -> str:
    """diffusers' class for a pipeline's parts."""
    unet = parts["unet"].config
    inpaint = "Inpaint" * (unet.in_channels > parts["vae"].config.latent_channels)
    if unet.addition_embed_type is None:
        if unet.time_cond_proj_dim is not None:
            return "LatentConsistencyModelPipeline"
        return f"StableDiffusion{inpaint}Pipeline"
    last = parts["text_encoder_2"] or parts["text_encoder"]
    refiner = unet.time_ids(last.config.projection_dim) == 5
    return f"StableDiffusionXL{'Img2Img' if refiner else inpaint}Pipeline"
