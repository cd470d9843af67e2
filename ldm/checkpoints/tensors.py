"""Named tensors in files: safetensors first, PyTorch pickles only with ``weights_only=True``."""

from __future__ import annotations

import os
import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from ldm.errors import CheckpointError


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Map a ``.safetensors`` or ``.bin`` file into memory: a tensor is read when it is first used.

    Raises CheckpointError for a file that is truncated, not of its kind, or would run code.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        mmap = zipfile.is_zipfile(path)  # else it is from before PyTorch 1.6, or no weight file
        tensors = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(
            f"{path} is a pickle that holds more than tensors ({reason}); "
            "loading it could run code, so it is refused: get the .safetensors version"
        ) from None
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path} is truncated or not a weight file ({reason}); get it again"
        ) from None
    if not isinstance(tensors, Mapping) or not all(
        isinstance(value, Tensor) for value in tensors.values()
    ):
        raise CheckpointError(f"{path} does not hold a plain mapping of names to tensors")
    return dict(tensors)


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
