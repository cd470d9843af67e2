"""The parts of a pipeline → a model's single file under the original names."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.family import FAMILIES, UNET, VAE, Family, read_family
from ldm.checkpoints.number_formats import GGUF_TYPES, Q8_0
from ldm.checkpoints.original import write_original
from ldm.checkpoints.prediction import STATED_PREDICTION
from ldm.checkpoints.tensors import to_save, write_tensors
from ldm.errors import ArgumentError, CheckpointError
from ldm.loading.single_file import TEXT_NAMES, names_of
from ldm.vae import AutoencoderKL

GGUF = ".gguf"
# What ComfyUI-GGUF calls them; stable-diffusion.cpp goes by the tensors.
ARCHITECTURES = {"sd1": "sd1", "sd2": "sd1", "sdxl": "sdxl", "sdxl_refiner": "sdxl"}


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


def save_file(parts: dict[str, Any], path: Path, dtype: torch.dtype | str | None) -> None:
    """Write a single file under the original names: safetensors, or GGUF if ``path`` ends so.

    dtype: None keeps each part's in a safetensors file, and is "q8_0" in a GGUF.
    Raises ArgumentError for a dtype that the file cannot have.
    """
    gguf = path.suffix.lower() == GGUF
    if gguf and dtype is not None and dtype not in GGUF_TYPES:
        known = ", ".join(str(kind).removeprefix("torch.") for kind in GGUF_TYPES)
        kind = str(dtype).removeprefix("torch.")
        raise ArgumentError(f"dtype is {kind}, which a GGUF does not have; expected one of {known}")
    number = None if isinstance(dtype, str) else dtype
    if not gguf and isinstance(dtype, str):
        raise ArgumentError(f"dtype is {dtype}, which only a GGUF has; give a name ending in .gguf")
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
        # Before renaming, which joins tensors: formats go by our names.
        own = module.state_dict() if gguf else to_save(module.state_dict(), number)
        tensors |= write_original(own, prefix, rename, convolutions)
    # Programs look for it in two places: in keys, and in the metadata.
    scheduler = parts["scheduler"].config
    marker = torch.zeros(
        1 if gguf else 0, dtype=torch.float32, device="cpu"
    )  # ggml's readers refuse empty tensors
    if scheduler.prediction_type == "v_prediction":
        tensors["v_pred"] = marker
    if scheduler.rescale_betas_zero_snr:
        tensors["ztsnr"] = marker.clone()
    prediction = scheduler.prediction_type
    word = "v" if prediction == "v_prediction" else prediction
    metadata = {STATED_PREDICTION: word, "modelspec.predict_key": word}
    if gguf:
        from ldm.checkpoints.gguf_writer import write_gguf

        write_gguf(tensors, path, dtype or Q8_0, ARCHITECTURES[family.id], metadata)
    else:
        write_tensors(tensors, path, metadata)
