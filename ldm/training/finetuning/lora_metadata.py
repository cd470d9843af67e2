"""The metadata of a LoRA's file: kohya's ``ss_…``, and those of Stability's ModelSpec."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from ldm import __version__
from ldm.adapters.lora_writing import model_hash
from ldm.pipeline import Pipeline
from ldm.training.config import TrainConfig
from ldm.training.finetuning.adapters import AdapterOptions

# Of the width of the texts that a U-Net reads: kohya's name of the base, and ModelSpec's.
BASES = {
    768: ("sd_v1", "stable-diffusion-v1"),
    1024: ("sd_v2", "stable-diffusion-v2"),
    2048: ("sdxl_base_v1-0", "stable-diffusion-xl-v1-base"),
}
MOST_TAGS = 1000  # of the most frequent, in the metadata


def lora_metadata(
    config: TrainConfig,
    options: AdapterOptions,
    pipe: Pipeline,
    tensors: Mapping[str, Tensor],
    data: Mapping[str, Any],
) -> dict[str, str]:
    """Return what a file says of itself, so that A1111, ComfyUI and sites of models show it.

    data: what the run learns from: "pictures" (their number), "captions", "size" (height, width),
    "clip_skip", "title", "base"; maybe "usage", how to draw with it.
    """
    width = pipe.unet.config.cross_attention_dim
    version, architecture = BASES.get(width or 0, ("ldm", "ldm"))
    prediction = pipe.scheduler.config.prediction_type
    if version == "sd_v2":
        version += "_v" if prediction == "v_prediction" else ""
        architecture += "-768-v" if prediction == "v_prediction" else "-512"
    height, width_px = data["size"]
    module = "networks.lora" if options.kind == "lora" and not options.dora else "lycoris.kohya"
    found = {
        "ss_network_module": module,
        "ss_network_dim": options.rank,
        "ss_network_alpha": float(options.alpha or options.rank),
        "ss_network_args": json.dumps(network_arguments(options)),
        "ss_base_model_version": version,
        "ss_v2": version.startswith("sd_v2"),
        "ss_sd_model_name": data["base"],
        "ss_output_name": data["title"],
        "ss_resolution": f"({width_px}, {height})",
        "ss_num_train_images": data["pictures"],
        "ss_max_train_steps": config.steps,
        "ss_total_batch_size": config.batch_size,
        "ss_learning_rate": config.learning_rate,
        "ss_optimizer": config.optimizer,
        "ss_seed": config.seed,
        "ss_mixed_precision": config.mixed_precision,
        "ss_max_grad_norm": config.max_grad_norm,
        "ss_clip_skip": data["clip_skip"] + 1 if data["clip_skip"] else None,  # it counts from 1
        "ss_tag_frequency": json.dumps({data["title"]: tag_frequency(data["captions"])}),
        "ss_training_comment": f"trained with ldm {__version__}",
        "sshs_model_hash": model_hash(tensors),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"{architecture}/lora",
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": data["title"],
        "modelspec.resolution": f"{width_px}x{height}",
        "modelspec.usage_hint": data.get("usage"),
        "modelspec.prediction_type": "v" if prediction == "v_prediction" else prediction,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def network_arguments(options: AdapterOptions) -> dict[str, str]:
    """Return the options of the network as kohya's and LyCORIS' arguments call them."""
    found: dict[str, Any] = {
        "algo": None if options.kind == "lora" and not options.dora else options.kind,
        "conv_dim": options.conv_rank,
        "conv_alpha": options.conv_alpha,
        "dora_wd": options.dora or None,
        "dropout": options.dropout or None,
        "factor": options.factor if options.kind == "lokr" else None,
    }
    return {key: str(value) for key, value in found.items() if value is not None}


def tag_frequency(captions: list[str]) -> dict[str, int]:
    """Count the tags of captions, which commas divide, by which sites offer trigger words."""
    counts = Counter(tag.strip() for text in captions for tag in text.split(",") if tag.strip())
    return dict(counts.most_common(MOST_TAGS))
