"""Parts that are given beside a model: for a file that lacks them, or in place of its own."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import torch

from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.folder import empty, fill, find_weights, read_weights
from ldm.checkpoints.names import to_ours
from ldm.checkpoints.original import Rename, clip_names, open_clip_names, read_original
from ldm.checkpoints.renamed import undo_renaming
from ldm.checkpoints.tensors import read_checkpoint
from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig
from ldm.errors import CheckpointError

# Where files hold text encoders: alone, in models of CompVis and SGM, in those of SD 3.
PREFIXES = (
    "",
    *("cond_stage_model.transformer.", "cond_stage_model.model."),
    "cond_stage_model.1.transformer.",  # of SDXL, as stable-diffusion.cpp renames it
    *(f"conditioner.embedders.{i}.{kind}." for i in (0, 1) for kind in ("transformer", "model")),
    *("text_encoders.clip_l.transformer.", "text_encoders.clip_g.transformer."),
)
# The tensor of the words' vectors, whose width tells the encoders apart, and the names it means.
WORDS: dict[str, Rename] = {
    "text_model.embeddings.token_embedding.weight": clip_names,
    "embeddings.token_embedding.weight": clip_names,
    "token_embedding.weight": open_clip_names,
}


def load_text_encoders(
    sources: Sequence[Path],
    wanted: Mapping[str, CLIPTextConfig],
    dtype: torch.dtype | None,
    device: torch.device,
) -> dict[str, CLIPTextEncoder]:
    """Load text encoders from files or folders, each for the part of its width.

    A source is an encoder's folder, a model's folder with some, or a file of either's names: an
    encoder alone, or a whole model of which nothing else is read.
    Raises CheckpointError for a source without an encoder of a width that is wanted.
    """
    found: dict[str, CLIPTextEncoder] = {}
    parts = {config.hidden_size: part for part, config in wanted.items()}
    for source in sources:
        widths = []
        for width, tensors, prefix, rename in encoders_in(source):
            widths.append(width)
            if width not in parts:
                continue
            part = parts[width]
            module = empty(CLIPTextEncoder, wanted[part])
            shapes = {key: value.shape for key, value in module.state_dict().items()}
            taken = read_original(tensors, shapes, prefix, rename)
            fill(module, taken, source, dtype, device)
            found[part] = module
        if not set(widths) & set(parts):
            here = f"found one of {' and '.join(map(str, widths))}" if widths else "found none"
            raise CheckpointError(
                f"{source} holds no text encoder of width {' or '.join(map(str, parts))}, "
                f"which this model reads: {here}"
            )
    return found


def encoders_in(source: Path) -> Iterator[tuple[int, dict[str, Stored], str, Rename]]:
    """Yield the text encoders of a source: width, the tensors they are in, prefix and names."""
    if source.is_dir():
        inner = [source / name for name in ("text_encoder", "text_encoder_2")]
        for folder in [path for path in inner if path.is_dir()] or [source]:
            tensors = read_weights(find_weights(folder, CLIPTextEncoder.weight_stem))
            yield from encoders_among(to_ours(tensors, ()))
    elif source.is_file():
        yield from encoders_among(undo_renaming(read_checkpoint(source).tensors))
    else:
        raise CheckpointError(f"{source} does not exist; give a text encoder's folder or file")


def encoders_among(
    tensors: dict[str, Stored],
) -> Iterator[tuple[int, dict[str, Stored], str, Rename]]:
    """Yield the text encoders among a file's tensors, as ``encoders_in`` does."""
    for prefix in PREFIXES:
        for name, rename in WORDS.items():
            words = tensors.get(f"{prefix}{name}")
            if words is not None and words.ndim == 2:
                if name.startswith("embeddings.") and not prefix:
                    tensors = {f"text_model.{key}": value for key, value in tensors.items()}
                yield words.shape[1], tensors, prefix, rename
                break
