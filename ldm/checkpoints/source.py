"""The place of a model: built in, a folder or file on disk, or a Hugging Face hub repository."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.checkpoints.assets import asset_path
from ldm.config.checking import shown
from ldm.config.files import is_name
from ldm.errors import ArgumentError, CheckpointError

PART_FOLDERS = ("unet/", "vae/", "text_encoder/", "text_encoder_2/", "classifier/")
ROOT_WEIGHTS = (
    "diffusion_pytorch_model"  # beside the folders: the U-Net of diffusers' first models of pixels
)
HUB_TIMEOUT = 20.0  # seconds until the hub answers
SMALL = (".json", ".txt", ".model")  # configs and vocabularies
LORA_FILE = "pytorch_lora_weights.safetensors"  # diffusers' own name


def choose_files(names: Iterable[str], variant: str | None = None) -> list[str]:
    """Choose which files of a repository to download: each part's weights once, all small files.

    Safetensors before pickles, then the requested variant, then the plain files.
    """
    names = list(names)
    chosen = [name for name in names if name.endswith(SMALL) and name.count("/") <= 1]
    for part in (*PART_FOLDERS, ROOT_WEIGHTS):
        inside = [name for name in names if re.fullmatch(rf"{part}[^/]+\.(safetensors|bin)", name)]

        def rank(name: str) -> tuple[bool, bool, bool]:
            kind = re.sub(r"-\d{5}-of-\d{5}", "", name.rsplit("/", 1)[-1]).split(".")[1:-1]
            return (
                name.endswith(".bin"),
                (variant not in kind) if variant else bool(kind),
                bool(kind),
            )

        best = min(map(rank, inside), default=None)
        chosen += [name for name in inside if rank(name) == best]
    return chosen


def check_paths(given: Mapping[str, Sequence[object]]) -> None:
    """Raise ArgumentError for an argument that is no path, such as a module; None is none."""
    for name, values in given.items():
        for value in values:
            if value is not None and not isinstance(value, str | Path):
                raise ArgumentError(
                    f"{name} is of the type {type(value).__name__}; give the path of a folder or a "
                    "file, or put a pipeline together from parts: Pipeline(vae, text_encoder, …)"
                )
            if value is not None and not is_name(value):
                raise ArgumentError(f"{name} is {shown(value)}, no name that a file can have")
            if isinstance(value, str) and "://" in value:
                raise ArgumentError(
                    f"{name} is {value!r:.80}, an address; download it, and give the file"
                )


def find_model(
    model: str | Path | None,
    *,
    cache_dir: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    local_files_only: bool = False,
    variant: str | None = None,
) -> Path:
    """Find ``model``: None is the built-in one, else it is a path, else a hub id ``owner/name``.

    Returns a folder or a single file.
    The hub's cache comes before the network. Raises CheckpointError when there is no such model.
    """
    if model is None:
        return asset_path("weights")
    path = Path(model).expanduser()
    if path.exists():
        return path
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", str(model)) or str(model).startswith("."):
        raise CheckpointError(
            f"{model} does not exist; give a diffusers folder, a single file or a hub id, "
            "which is of the form owner/name"
        )
    return _from_hub(str(model), cache_dir, revision, token, local_files_only, variant)


def find_own_controlnet(model: Path) -> Path | None:
    """Return the folder of the one ControlNet in a model's folder, if it has one."""
    folder = model / "controlnet"
    alone = not (model / "controlnet_1").exists()  # of several, none is the model's own
    return folder if alone and (folder / "config.json").is_file() else None


def find_own_ip_adapter(model: Path) -> Path | None:
    """Return the file of the IP-Adapter in a model's folder, if it has one."""
    file = model / "ip_adapter" / "ip_adapter.safetensors"
    return file if file.is_file() else None


def _from_hub(
    repo: str,
    cache_dir: str | None,
    revision: str | None,
    token: str | None,
    local: bool,
    variant: str | None,
) -> Path:
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    arguments: dict[str, Any] = {"cache_dir": cache_dir, "revision": revision, "token": token}
    try:
        folder = Path(snapshot_download(repo, local_files_only=True, **arguments))
        whole = (folder / "unet").is_dir() or any(folder.glob(f"{ROOT_WEIGHTS}.*"))
        if whole or local:  # else another program has put a part there
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
        # Unlike list_repo_files, this does not try for 24 s if there is no network.
        model = HfApi(token=token).model_info(repo, revision=revision, timeout=HUB_TIMEOUT)
        names = [file.rfilename for file in model.siblings or ()]
        if "model_index.json" not in names:
            shown = ", ".join(names[:5])
            raise CheckpointError(f"{repo} has no model_index.json (there are: {shown}, …); {hint}")
        chosen = choose_files(names, variant)
        return Path(snapshot_download(repo, allow_patterns=chosen, **arguments))
    except CheckpointError:
        raise
    except Exception as error:  # also those of the HTTP library, which changes between versions
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"there is no folder {repo}, and the hub did not give it ({reason}); {hint}"
        ) from None


def file_of_lora(path: Path) -> Path:
    """Return a LoRA's file: ``path`` itself, or of a folder diffusers' own or the only one in it.

    So the folder of a run of ``ldm train lora`` stands for what it has learnt.
    Raises CheckpointError for a folder in which none is named.
    """
    if not path.is_dir():
        return path
    if (path / LORA_FILE).is_file():
        return path / LORA_FILE
    files = sorted(each for each in path.iterdir() if each.suffix == ".safetensors")
    if len(files) == 1:
        return files[0]
    names = ", ".join(file.name for file in files[:5])
    raise CheckpointError(
        f"{path} is a folder with {len(files)} LoRA files{f' ({names})' if files else ''}; give "
        + ("one of them" if files else "the file, or a run that has saved one")
    )
