"""Where a model is: the built-in one, a folder on disk, or a repository of the Hugging Face hub."""

from __future__ import annotations

import os
import re
from pathlib import Path

from ldm.assets import asset_path
from ldm.errors import ArgumentError, CheckpointError

# What a pipeline consists of; the fp16 copies and other frameworks' files stay where they are.
PATTERNS = [
    "*.json",
    "tokenizer/*",
    "unet/diffusion_pytorch_model.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "text_encoder/model.safetensors",
]


def find_model(
    model: str | Path | None,
    *,
    cache_dir: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
) -> Path:
    """Where ``model`` is: None is the built-in one, else a path, else a hub id ``owner/name``.

    A folder, or a single file.
    The hub's cache is asked before the network. Raises CheckpointError when there is no such model.
    """
    if model is None:
        return asset_path("weights")
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) or str(model).startswith("."):
        raise CheckpointError(
            f"{model} does not exist; give a diffusers folder or a hub id such as owner/name"
        )
    return _from_hub(str(model), cache_dir, revision, token, local_files_only)


def _from_hub(
    repo: str, cache_dir: str | None, revision: str | None, token: str | None, local: bool
) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    arguments = {
        "cache_dir": cache_dir,
        "revision": revision,
        "token": token,
        "allow_patterns": PATTERNS,
    }
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, **arguments))
        if (
            folder / "unet"
        ).is_dir() or local:  # else the cache holds a part only, from another program
            return folder
    except (LocalEntryNotFoundError, FileNotFoundError):
        pass
    except HFValidationError as error:
        raise ArgumentError(f"{repo} is not a hub id ({error})") from None
    hint = "give a diffusers folder, or download the model on a machine with a network first"
    if local or os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise CheckpointError(
            f"there is no folder {repo}, nor a model {repo} in the hub's cache; {hint}"
        )
    try:
        return Path(snapshot_download(repo, **arguments))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"there is no folder {repo}, and the hub did not give it ({reason}); {hint}"
        ) from None
