"""CLIP's vision encoder for an IP-Adapter: from a folder or a file, or found beside the adapter."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch

from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.folder import empty, fill, find_weights, read_weights
from ldm.checkpoints.kinds import article, find_adapter, find_other, listed
from ldm.clip_vision import CLIPVisionEncoder
from ldm.config import CLIPVisionConfig, IPAdapterConfig, read_json
from ldm.errors import CheckpointError

MOST_LAYERS = 128  # published ones have 48 at most
FIRST = "vision_model.embeddings.class_embedding"
PARTS = ("vision_model.", "visual_projection.")  # of a whole CLIP, the text's side is left out
# Of files alone, which say neither: hidden_size → (heads, activation) of published encoders.
KNOWN = {768: (12, "quick_gelu"), 1024: (16, "quick_gelu"), 1280: (16, "gelu"), 1664: (16, "gelu")}
NAMES = {
    1024: "ViT-H/14",
    1280: "ViT-bigG/14",
    768: "ViT-L/14",
}  # by projection_dim; those of the files of h94/IP-Adapter


def load_image_encoder(
    path: Path, adapter: IPAdapterConfig, dtype: torch.dtype | None, device: torch.device
) -> CLIPVisionEncoder:
    """Load an encoder from its folder, a model's folder with one, or a file.

    Raises CheckpointError for what is missing, broken or of another kind, and for an encoder whose
    width is not the adapter's.
    """
    if path.is_dir():
        inner = path / "image_encoder"
        folder = inner if inner.is_dir() and not (path / "config.json").is_file() else path
        config = CLIPVisionConfig.from_file(folder / "config.json")
        check_width(folder, config, adapter)
        path = find_weights(folder, CLIPVisionEncoder.weight_stem)
        tensors = read_weights(path)
    elif path.is_file():
        tensors = read_weights(path)
        check_kind(path, tensors)
        beside = read_json(path.parent / "config.json", optional=True)
        is_clip = str(beside.get("model_type", "")).startswith("clip")
        config = CLIPVisionConfig.from_dict(beside) if is_clip else config_of(path, tensors)
        check_width(path, config, adapter)
    else:
        raise CheckpointError(f"{path} does not exist; give an image encoder's folder or file")
    check_kind(path, tensors)
    for name in list(tensors):
        if not name.startswith(PARTS) or name.endswith("position_ids"):
            del tensors[name]
    module = empty(CLIPVisionEncoder, config)
    fill(module, tensors, path, dtype, device)
    return module


def check_kind(path: Path, tensors: Mapping[str, Stored]) -> None:
    """Raise CheckpointError for anything but CLIP's vision encoder with transformers' names."""
    if FIRST in tensors and "visual_projection.weight" in tensors:
        return
    if FIRST in tensors:
        raise CheckpointError(
            f"{path} has no visual_projection.weight: it is a CLIPVisionModel; give the encoder "
            "with its projection (CLIPVisionModelWithProjection)"
        )
    names = listed(tensors)
    kind = find_adapter(names) or find_other(names)
    if kind is not None and kind.name == "CLIP image encoder":
        raise CheckpointError(
            f"{path} is a CLIP image encoder with other names than transformers'; give that of "
            "h94/IP-Adapter (models/image_encoder), or convert it"
        )
    what = (
        f"is {article(kind.name)}" if kind else f"holds {', '.join(list(tensors)[:2]) or 'nothing'}"
    )
    raise CheckpointError(f"{path} {what}, not a CLIP image encoder")


def config_of(path: Path, tensors: Mapping[str, Stored]) -> CLIPVisionConfig:
    """Return the configuration of a file without one, by its shapes and by published encoders."""
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    patches = shapes.get("vision_model.embeddings.patch_embedding.weight", ())
    places = shapes.get("vision_model.embeddings.position_embedding.weight", ())
    inner = shapes.get("vision_model.encoder.layers.0.mlp.fc1.weight", ())
    projection = shapes["visual_projection.weight"]
    layers = {
        match[1]
        for name in shapes
        if (match := re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name))
    }
    side = round(max((places or (1,))[0] - 1, 0) ** 0.5)
    if len(layers) > MOST_LAYERS:
        raise CheckpointError(
            f"{path} is an image encoder of {len(layers):,} layers; expected {MOST_LAYERS} at most"
        )
    if len(patches) != 4 or len(inner) != 2 or len(projection) != 2 or patches[0] not in KNOWN:
        width = patches[0] if patches else "unknown"
        raise CheckpointError(
            f"{path} is an image encoder of width {width}, which is none of those known by their "
            "shapes; give its folder with a config.json"
        )
    heads, activation = KNOWN[patches[0]]
    return CLIPVisionConfig(
        hidden_size=patches[0],
        intermediate_size=inner[0],
        projection_dim=projection[0],
        num_hidden_layers=len(layers),
        num_attention_heads=heads,
        hidden_act=activation,
        image_size=side * patches[2],
        patch_size=patches[2],
    )


def width_of(config: CLIPVisionConfig, adapter: IPAdapterConfig) -> int:
    """Return the width of what an adapter would read of an encoder."""
    return config.hidden_size if adapter.reads_patches else config.projection_dim


def check_width(path: Path, config: CLIPVisionConfig, adapter: IPAdapterConfig) -> None:
    """Raise CheckpointError for an encoder whose width is not the adapter's."""
    found = width_of(config, adapter)
    if found != adapter.image_width:
        what = "states" if adapter.reads_patches else "embeddings"
        known = f" ({NAMES[adapter.image_width]})" if adapter.image_width in NAMES else ""
        raise CheckpointError(
            f"{path} is an image encoder with {what} of width {found}; the IP-Adapter reads "
            f"{adapter.image_width}{known if not adapter.reads_patches else ''}: give the encoder "
            "that it was trained with"
        )


def find_image_encoder(folders: Sequence[Path], adapter: IPAdapterConfig) -> Path | None:
    """Return the first of the folders that exists and fits an adapter."""
    for folder in folders:
        values = read_json(folder / "config.json", optional=True)
        if "CLIP" not in str(values.get("architectures")):
            continue
        config = CLIPVisionConfig.from_dict(values, str(folder / "config.json"))
        if width_of(config, adapter) == adapter.image_width:
            return folder
    return None
