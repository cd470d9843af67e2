"""The memory that a loaded model needs for pictures, and that a model's weights need."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ldm.errors import LDMError, NotEnoughMemoryError
from ldm.fast import onednn
from ldm.fast.graphs import forget_recordings
from ldm.fast.memory import available_memory
from ldm.images.inputs import check_size
from ldm.latents import Pixels
from ldm.loading.model import Model
from ldm.memory.estimate import Drawing, MemoryNeeded, Networks, estimate, in_one_call
from ldm.memory.refusal import OVERRIDE, check_fits
from ldm.memory.system import gigabytes
from ldm.request import Request
from ldm.text.conditioning import Prompted
from ldm.unet import UNetEncoder

WIDER = 4  # times the bytes of a file that its weights may take: float8 in float32


def networks_of(model: Model) -> Networks:
    """Return the networks of a model, with what is installed on them."""
    parts = {name: part for name, part in model.parts.items() if isinstance(part, torch.nn.Module)}
    others = model.controlnets | model.t2i_adapters | model.adapters
    fast, by_blocks = model.optimized, 0
    in_8_bits: dict[str, int] = {}
    if model.device.type == "cuda":
        from ldm.fast.int8_weights import sizes_in_8_bits  # most models are on CPUs
        from ldm.fast.sequential import held

        by_blocks = held((parts | others).values(), [*filter(None, [model.classifier])])
        in_8_bits = sizes_in_8_bits(parts | model.controlnets)
    with onednn.as_plain_tensors():  # packed weights would be unpacked
        weights = {
            name: sum(p.numel() * p.dtype.itemsize for p in part.parameters())
            for name, part in (parts | others).items()
        }
        unet = next(model.unet.parameters()).dtype
        own = [parameter.dtype.itemsize for parameter in model.vae.parameters()]
    codec = None if isinstance(model.vae, Pixels) else model.vae.config
    direct = fast.on and not fast.compile and fast.engine is None
    if model.device.type == "cpu":
        direct = direct and onednn.packs(unet)
    return Networks(
        model.unet.config,
        codec,
        tuple(text.encoder.config for text in model.text_models),
        weights,
        True,
        unet.itemsize,
        own[0] if own else 4,
        direct,
        fast.int8,
        fast.ways["offload"],
        model.device.type,
        by_blocks,
        fast.fp8,
        fast.engine is not None,
        fast.int8_weights,
        in_8_bits,
    )


def memory_needed(
    model: Model,
    height: int | None = None,
    width: int | None = None,
    num_images: int = 1,
    guidance_scale: float | None = None,
    image: bool = False,
    controlnets: int = 0,
) -> MemoryNeeded:
    """Estimate as ``Pipeline.memory_needed``. Raises ArgumentError for an impossible size."""
    own_height, own_width = model.default_size()
    scale = model.defaults.guidance_scale if guidance_scale is None else guidance_scale
    size = check_size(height or own_height, width or own_width, model.vae.config.scale)
    rows = (2 if scale > 1 else 1) + model.edits
    drawing = Drawing(*size, num_images, rows, image, controlnets)
    return estimate(networks_of(model), drawing, available_memory(model.device))


def check_memory(
    model: Model,
    request: Request,
    size: tuple[int, int],
    prompted: Sequence[Prompted],
    guided: bool,
    controlnets: Mapping[str, Any] | None = None,
) -> None:
    """Raise NotEnoughMemoryError for a run that cannot fit, with what would.

    size: (height, width) in pixels. prompted: of each picture, or none if that is not known.
    """
    if model.device.type not in ("cpu", "cuda"):
        return
    texts = max((len(one.scripts) for one in prompted), default=1)
    joined = guided or any(one.combined for one in prompted)
    steering = [one for one in (controlnets or {}).values() if isinstance(one, UNetEncoder)]
    drawing = Drawing(
        *size,
        request.count,
        texts + joined + (model.edits and guided),
        request.image is not None,
        len(steering),
        request.reference_image is not None,
        request.output_type != "latent",
        in_one_call(request.style_aligned, request.deep_cache, request.deep_cache_branch),
    )
    check_fits(
        networks_of(model),
        drawing,
        lambda: available_memory(model.device),
        lambda: forget_recordings(model.device),
    )


def check_weights_fit(
    path: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None
) -> None:
    """Raise NotEnoughMemoryError for weights that cannot fit, before they are read.

    Only headers are read, and those only if the files are large for what there is.
    """
    available = available_memory(device)
    if available is None or os.environ.get(OVERRIDE) == "ignore":
        return
    files = path.rglob("*") if path.is_dir() else [path]
    if WIDER * sum(file.stat().st_size for file in files if file.is_file()) <= available:
        return
    from ldm.loading.outline import read_outline

    try:
        weights = sum(read_outline(path, dtype, device.type, variant).weights.values())
    except LDMError:
        return  # loading names what is wrong
    if weights > available:
        half = "; half precision (--dtype bfloat16) takes half" * (dtype == torch.float32)
        away = ""
        if device.type == "cuda":
            away = (
                "; --offload, --int8-weights or --sequential-offload (from_pretrained(offload=…)) "
                "loads them into "
                "the CPU's memory, and --device cpu may have more"
            )
        raise NotEnoughMemoryError(
            f"{path}: its weights would take {gigabytes(weights)} of memory, of which "
            f"{gigabytes(available)} is available{half}{away}; raise the limit, or take a smaller "
            f"model ({OVERRIDE}=ignore tries nevertheless)"
        )
