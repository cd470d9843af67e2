"""Named tensors in files: safetensors first, PyTorch pickles only with ``weights_only=True``."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.checkpoints.header import read_header
from ldm.errors import CheckpointError


class Checkpoint(NamedTuple):
    """What a weight file holds."""

    tensors: dict[str, Tensor]
    metadata: dict[str, str]  # of a .safetensors file
    global_step: int | None = None  # of a training checkpoint


def read_tensors(path: Path) -> dict[str, Tensor]:
    """The tensors of ``read_checkpoint``."""
    return read_checkpoint(path).tensors


def read_checkpoint(path: Path) -> Checkpoint:
    """Map a ``.safetensors`` file, or a pickle of PyTorch's, into memory.

    A tensor is read when it is first used. A training checkpoint's weights are its ``state_dict``.
    Raises CheckpointError for a file that is truncated, not of its kind, or would run code.
    """
    content, metadata = read_content(path)
    step = content.get("global_step") if isinstance(content, Mapping) else None
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    if not isinstance(content, Mapping) or not all(
        isinstance(value, Tensor) for value in content.values()
    ):
        raise CheckpointError(f"{path} does not hold a plain mapping of names to tensors")
    return Checkpoint(dict(content), metadata, step if isinstance(step, int) else None)


def read_embedding(path: Path) -> tuple[dict[str, Tensor], str | None]:
    """The vectors (n, D) of a textual inversion by their names, and its word, if the file says it.

    Four forms are known: A1111's .pt, its .safetensors, diffusers', and SDXL's with two entries.
    Raises CheckpointError for anything else.
    """
    content, _ = read_content(path)
    word = None
    if isinstance(content, Mapping) and isinstance(content.get("string_to_param"), Mapping):
        word, content = content.get("name"), content["string_to_param"]
    elif isinstance(content, Mapping) and len(content) == 1:
        (word,) = content
        word = None if word == "emb_params" else word
    vectors = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if not isinstance(value, Tensor) or value.ndim not in (1, 2) or not value.numel():
            vectors.clear()
            break
        vectors[str(name)] = value.detach().reshape(-1, value.shape[-1])
    if not vectors or len(vectors) > 2:
        raise CheckpointError(
            f"{path} is no textual inversion: expected one or two tensors of vectors"
        )
    return vectors, word if isinstance(word, str) else None


def read_content(path: Path) -> tuple[object, dict[str, str]]:
    """What a file holds, and a .safetensors file's metadata; errors as ``read_checkpoint``'s."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path), read_header(path).metadata
        mmap = zipfile.is_zipfile(path)  # else it is from before PyTorch 1.6, or no weight file
        if mmap:
            with zipfile.ZipFile(path) as archive:
                if any(item.compress_type for item in archive.infolist()):
                    raise ValueError("it has compressed members, which PyTorch never writes")
        return torch.load(path, map_location="cpu", weights_only=True, mmap=mmap), {}
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is a pickle that holds more than tensors ({reason}); "
            "loading it could run code, so it is refused: get the .safetensors version"
        ) from None
    except CheckpointError:
        raise
    except Exception as error:  # PyTorch's unpickler raises errors of all types on damaged files
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or not a weight file ({reason}); get it again"
        ) from None


def write_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write a safetensors file whole or not at all. Raises OSError, such as for a full disk."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        # The metadata is what transformers looks for before it accepts a file.
        save_file(
            {key: value.contiguous() for key, value in tensors.items()}, partial, {"format": "pt"}
        )
        os.replace(partial, path)
    except SafetensorError as error:
        raise OSError(f"cannot write {path} ({error})") from None
    finally:
        partial.unlink(missing_ok=True)
