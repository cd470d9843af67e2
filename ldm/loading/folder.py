"""A model's folder → the parts of a pipeline, and back: what diffusers reads and writes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm import __version__
from ldm.checkpoints.folder import M, load_component, save_component
from ldm.classes.classifier import Classifier
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig, read_json, write_json
from ldm.config.generation import FILE, Defaults
from ldm.config.picture_readers import CONTROLNET, T2I_ADAPTER
from ldm.config.tasks import task_of
from ldm.errors import CheckpointError
from ldm.latents import Pixels
from ldm.loading.devices import vae_dtype
from ldm.loading.vae import load_vae_folder
from ldm.scheduler import DDPMScheduler
from ldm.taesd import AutoencoderTiny
from ldm.techniques.preview import LinearPreview
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL
from ldm.writing import whole_files

PREVIEW = Path("vae", "preview.json")  # ours; diffusers does not read it
LAYOUT = "0.35.0"  # of diffusers, whose layout and names are written
# diffusers has a class for each task; here the arguments of a call decide it.
PIPELINES = frozenset(
    f"{family}{task}Pipeline"
    for family, tasks in (
        ("StableDiffusion", ("", "Img2Img", "Inpaint")),
        ("StableDiffusionXL", ("", "Img2Img", "Inpaint")),
        ("LatentConsistencyModel", ("", "Img2Img")),
        ("StableDiffusion", ("InstructPix2Pix", "Depth2Img")),
        ("StableDiffusionXL", ("InstructPix2Pix",)),
        ("StableDiffusion", ("ControlNet", "ControlNetImg2Img", "ControlNetInpaint")),
        ("StableDiffusionXL", ("ControlNet", "ControlNetImg2Img", "ControlNetInpaint")),
    )
    for task in tasks
)
CLASS_WORDS = {"inpaint": "Inpaint", "edit": "InstructPix2Pix", "depth": "Depth2Img"}
PIXEL_PIPELINES = frozenset({"DDPMPipeline", "DDIMPipeline"})


def load_folder(
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device,
    variant: str | None = None,
    prediction_type: str | None = None,
) -> dict[str, Any]:
    """Load the arguments of ``Pipeline`` from a diffusers folder.

    Raises CheckpointError for a folder that is broken or not supported.
    """
    check_no_adapter(folder)
    index = read_json(folder / "model_index.json")
    kind = str(index.get("_class_name"))
    if kind not in PIPELINES | PIXEL_PIPELINES:
        raise CheckpointError(
            f"{folder / 'model_index.json'} is of a {kind}; only models of the Stable Diffusion "
            f"family are supported, and of pixels {' and '.join(sorted(PIXEL_PIPELINES))}"
        )
    if index.get("is_cosxl_edit"):
        raise CheckpointError(
            f"{folder / 'model_index.json'} is of CosXL Edit, which is not supported; of editing "
            "models, instruct-pix2pix is"
        )

    def place(name: str) -> Path:
        """Find the folder of a part; the first models of diffusers had none for their only one."""
        inner = folder / name
        return folder if kind in PIXEL_PIPELINES and not inner.is_dir() else inner

    def load(module_class: type[M], name: str) -> M:
        return load_component(module_class, place(name), dtype, device, variant)

    scheduler = SchedulerConfig.from_file(place("scheduler") / "scheduler_config.json")
    if prediction_type:
        scheduler = replace(scheduler, prediction_type=prediction_type)
    if scheduler.prediction_type == "mean" and dtype is not None:
        # μ̃ differs from x_t by a thousandth, which half precision rounds away.
        dtype = torch.float32
    extra = folder / FILE
    parts: dict[str, Any] = {
        "vae": None,
        "text_encoder": None,
        "tokenizer": None,
        "unet": load(UNet, "unet"),
        "scheduler": DDPMScheduler(scheduler),
        "defaults": Defaults.from_file(extra) if extra.exists() else None,
    }
    if kind in PIXEL_PIPELINES:
        parts["id2label"] = index.get("id2label")
        if has_part(index, "classifier"):
            parts["classifier"] = load(Classifier, "classifier")
        return parts
    vae = parts["vae"] = load_vae_folder(folder / "vae", vae_dtype(dtype), device, variant)
    values = read_json(folder / PREVIEW, optional=True)
    if values and isinstance(vae, AutoencoderKL):
        vae.preview = LinearPreview.of(values, vae.config.latent_channels, folder / PREVIEW)
    for end in ("", "_2"):
        if has_part(index, f"text_encoder{end}"):  # SDXL's refiner has no first one
            parts[f"text_encoder{end}"] = load(CLIPTextEncoder, f"text_encoder{end}")
            parts[f"tokenizer{end}"] = CLIPTokenizer.from_pretrained(folder / f"tokenizer{end}")
    zeros = bool(index.get("force_zeros_for_empty_prompt", False))
    return parts | {"force_zeros_for_empty_prompt": zeros}


def check_no_adapter(folder: Path) -> None:
    """Raise CheckpointError for the folder of a ControlNet or a T2I-Adapter alone."""
    path = folder / "config.json"
    if (folder / "model_index.json").exists() or not path.is_file():
        return
    found = str(read_json(path).get("_class_name"))
    for part, kind in (("ControlNet", CONTROLNET), ("T2IAdapter", T2I_ADAPTER)):
        if part in found:
            raise CheckpointError(
                f"{folder} is a {kind.name}, not a model; give it beside one: {kind.flag} {folder}"
            )


def has_part(index: dict[str, Any], part: str) -> bool:
    """Return whether a model_index.json lists a part."""
    value = index.get(part)
    return isinstance(value, list) and None not in value


def save_folder(parts: dict[str, Any], folder: Path, dtype: torch.dtype | None) -> None:
    """Write what ``load_folder`` reads, and diffusers too, when all of it is written.

    dtype: None keeps each part's. Raises OSError, such as for a full disk.
    """
    unet, scheduler = parts["unet"].config, parts["scheduler"].config
    if isinstance(parts["vae"], AutoencoderTiny) and parts["vae"].encoder is None:
        raise CheckpointError(
            "the VAE is the decoder of a TAESD alone, with which other programs cannot load a "
            "model; give a whole one, or another VAE"
        )
    index: dict[str, Any] = {
        "_class_name": class_name(parts),
        "_diffusers_version": LAYOUT,
        "_ldm_version": __version__,
        "scheduler": ["diffusers", scheduler.sampler_class],
        "unet": ["diffusers", unet.class_name],
    }
    defaults = dict(vars(parts["defaults"]))
    del defaults["few_steps"]  # whose LoRA is no part
    if parts["classifier"] is None:
        del defaults["classifier_scale"]
    if "Pix2Pix" not in index["_class_name"]:
        del defaults["image_guidance_scale"]
    save_rest = save_pixels if index["_class_name"] in PIXEL_PIPELINES else save_latents
    with whole_files(folder) as new:
        save_rest(parts, new, dtype, index)
        save_component(parts["unet"], new / "unet", dtype)
        write_json(new / "scheduler" / "scheduler_config.json", scheduler.to_dict())
        write_json(new / FILE, defaults)
        write_json(new / "model_index.json", index)


def save_pixels(
    parts: dict[str, Any], folder: Path, dtype: torch.dtype | None, index: dict[str, Any]
) -> None:
    """Write what only models of pixels have, and list it in the ``index``."""
    if parts["id2label"]:
        index["id2label"] = dict(parts["id2label"])
    if parts["classifier"] is not None:
        save_classifier(parts["classifier"], folder, dtype, index)


def save_classifier(
    classifier: Classifier, folder: Path, dtype: torch.dtype | None, index: dict[str, Any]
) -> None:
    """Write the classifier that guides a model of pixels, and list it in the ``index``."""
    save_component(classifier, folder / "classifier", dtype)
    index["classifier"] = ["ldm.classifier", "Classifier"]


def save_latents(
    parts: dict[str, Any], folder: Path, dtype: torch.dtype | None, index: dict[str, Any]
) -> None:
    """Write what only the Stable Diffusion family has, and list it in the ``index``."""
    nothing = [None, None]
    index |= {"feature_extractor": nothing, "vae": ["diffusers", type(parts["vae"]).__name__]}
    index |= {"text_encoder": nothing, "tokenizer": nothing}
    for end in ("", "_2"):
        encoder, tokenizer = parts[f"text_encoder{end}"], parts[f"tokenizer{end}"]
        if encoder is None:
            continue
        save_component(encoder, folder / f"text_encoder{end}", dtype)
        tokenizer.save_pretrained(folder / f"tokenizer{end}")
        index[f"text_encoder{end}"] = ["transformers", encoder.config.architectures[0]]
        index[f"tokenizer{end}"] = ["transformers", "CLIPTokenizer"]
    if "XL" in index["_class_name"]:
        index["image_encoder"] = nothing
        index["force_zeros_for_empty_prompt"] = parts["force_zeros_for_empty_prompt"]
        index["requires_aesthetics_score"] = "Img2Img" in index["_class_name"]
    else:
        index |= {"requires_safety_checker": False, "safety_checker": nothing}
    save_component(parts["vae"], folder / "vae", dtype)
    if isinstance(parts["vae"].preview, LinearPreview):
        write_json(folder / PREVIEW, parts["vae"].preview.values())


def class_name(parts: dict[str, Any]) -> str:
    """Return diffusers' class for a pipeline's parts."""
    unet = parts["unet"].config
    if isinstance(parts["vae"], Pixels):
        ddim = parts["scheduler"].config.sampler_class == "DDIMScheduler"
        return "DDIMPipeline" if ddim else "DDPMPipeline"
    task = task_of(unet.in_channels, parts["vae"].config.latent_channels)
    word = CLASS_WORDS.get(str(task), "")
    if unet.addition_embed_type is None:
        lcm = parts["scheduler"].config.sampler_class == "LCMScheduler"
        if lcm and unet.time_cond_proj_dim is not None:
            return "LatentConsistencyModelPipeline"
        return f"StableDiffusion{word}Pipeline"
    last = parts["text_encoder_2"] or parts["text_encoder"]
    refiner = unet.time_ids(last.config.projection_dim) == 5
    return f"StableDiffusionXL{'Img2Img' if refiner else word}Pipeline"
