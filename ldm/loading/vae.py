"""A VAE's folder or file → the module: a Stable Diffusion VAE, or a TAESD."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch

from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.family import VAE
from ldm.checkpoints.folder import check_tensors, empty, fill, load_component
from ldm.checkpoints.names import to_ours
from ldm.checkpoints.original import read_original, vae_names
from ldm.checkpoints.tensors import read_checkpoint
from ldm.config import TAESDConfig, VAEConfig, read_json
from ldm.errors import CheckpointError
from ldm.taesd import AutoencoderTiny
from ldm.vae import AutoencoderKL

# The original code numbers the layers of each coder, in a file of its own ("1.weight") or both in
# one ("decoder.1.weight"); ComfyUI writes "taesd_decoder.1.weight", diffusers "decoder.layers.0".
TAESD_NAME = re.compile(
    r"(?:(?:taesd_)?(?P<coder>encoder|decoder)\.)?(?P<layers>layers\.)?(?P<number>\d+)\."
    r"(?P<rest>(?:conv\.\d+\.)?(?:weight|bias))"
)
CODERS = ("encoder", "decoder")
LAYER = re.compile(r"\w+\.layers\.(\d{1,4})\.")


def load_vae(
    path: Path,
    config: VAEConfig | TAESDConfig,
    dtype: torch.dtype | None,
    device: torch.device,
) -> AutoencoderKL | AutoencoderTiny:
    """Load a VAE from its folder, or from a file of original or diffusers' names.

    config: of the VAE in whose place it comes. A file has none: its tensors must have the sizes of
    this one, or of TAESD.
    Raises CheckpointError for a VAE that is broken or does not fit.
    """
    if path.is_dir():
        inner = path / "vae"
        vae = load_vae_folder(inner if inner.is_dir() else path, dtype, device)
        check_channels(path, "a VAE", vae.config.latent_channels, config.latent_channels)
        return vae
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a VAE's folder or file")
    tensors = read_checkpoint(path).tensors
    if is_taesd(tensors):
        return read_taesd(path, tensors, config.latent_channels, dtype, device)
    if not isinstance(config, VAEConfig):
        raise CheckpointError(
            f"{path} is the file of a VAE whose sizes are not known, as the model has a TAESD; "
            "give a folder with a config.json"
        )
    return read_kl(path, tensors, config, dtype, device)


def find_vae(names: Iterable[str]) -> str | None:
    """Return the prefix of the names of a file's VAE; None if it has none.

    stable-diffusion.cpp puts one that is given beside a model under "vae.".
    """
    names = list(names)
    return next((p for p in ("vae.", VAE) if any(name.startswith(p) for name in names)), None)


def load_preview_vae(
    path: Path, channels: int, dtype: torch.dtype | None, device: torch.device
) -> AutoencoderTiny:
    """Load a TAESD for previews, of latents of so many ``channels``.

    Raises CheckpointError for another VAE, which would take as long as the picture itself.
    """
    other = f"{path} is no TAESD; a preview_vae must be one: taesd or taesdxl"
    if path.is_file() and not is_taesd(read_checkpoint(path).tensors):
        raise CheckpointError(other)
    vae = load_vae(path, TAESDConfig(latent_channels=channels), dtype, device)
    if not isinstance(vae, AutoencoderTiny):
        raise CheckpointError(other)
    return vae


def load_vae_folder(
    folder: Path, dtype: torch.dtype | None, device: torch.device, variant: str | None = None
) -> AutoencoderKL | AutoencoderTiny:
    """Load a VAE's folder of the class that its config names. Raises CheckpointError for others."""
    config = read_json(folder / "config.json", optional=True)
    kind = str(config.get("_class_name", "AutoencoderKL"))
    if kind == "AutoencoderTiny":
        return load_component(AutoencoderTiny, folder, dtype, device, variant)
    if kind != "AutoencoderKL":
        raise CheckpointError(
            f"{folder / 'config.json'} is of a {kind}; only AutoencoderKL and AutoencoderTiny "
            "(TAESD) are supported"
        )
    return load_component(AutoencoderKL, folder, dtype, device, variant)


def check_channels(path: Path, what: str, found: int, wanted: int) -> None:
    """Raise CheckpointError for a VAE of another number of latent channels."""
    if found != wanted:
        whose = " (of Stable Diffusion 3, Flux or the like)" if found == 16 else ""
        raise CheckpointError(
            f"{path} is {what} of {found} latent channels{whose}; this model has {wanted}: give a "
            "VAE that was made for its family"
        )


def read_kl(
    path: Path,
    tensors: dict[str, Stored],
    config: VAEConfig,
    dtype: torch.dtype | None,
    device: torch.device,
) -> AutoencoderKL:
    """Make a Stable Diffusion VAE of a file's tensors."""
    module = empty(AutoencoderKL, config)
    expected = module.state_dict()
    first = next((v for k, v in tensors.items() if k.endswith("decoder.conv_in.weight")), None)
    if first is not None and first.ndim > 1:
        check_channels(path, "a VAE", first.shape[1], config.latent_channels)
    if any(".down_blocks." in key for key in tensors):
        tensors = to_ours(tensors, expected)
    else:
        prefix = find_vae(tensors) or ""
        shapes = {key: value.shape for key, value in expected.items()}
        names = vae_names(len(config.block_out_channels))
        tensors = read_original(tensors, shapes, prefix, names)
    fill(module, tensors, path, dtype, device)
    return module


def is_taesd(names: Iterable[str]) -> bool:
    """Whether a file's names are those of a TAESD, or of one of its coders."""
    found = [TAESD_NAME.fullmatch(name) for name in names]
    return any(match and match["rest"].startswith("conv.") for match in found)


def read_taesd(
    path: Path,
    tensors: Mapping[str, Stored],
    channels: int,
    dtype: torch.dtype | None,
    device: torch.device,
) -> AutoencoderTiny:
    """Make a TAESD of a file's tensors.

    The original code has a file for each coder: of one, the other is read if it is beside it under
    the name with "encoder" for "decoder" or the reverse. A decoder also works alone.
    """
    found = taesd_names(tensors)
    for missing in [coder for coder in CODERS if not any(name.startswith(coder) for name in found)]:
        (there,) = {*CODERS} - {missing}
        beside = path.with_name(path.name.replace(there, missing))
        if beside != path and beside.is_file():
            other = taesd_names(read_checkpoint(beside).tensors)
            found |= {name: value for name, value in other.items() if name.startswith(missing)}
    module = empty(AutoencoderTiny, TAESDConfig())
    decoder, encoder = found.get("decoder.layers.0.weight"), last_of(found, "encoder")
    if decoder is not None and decoder.ndim == 4:
        check_channels(path, "a TAESD", decoder.shape[1], channels)
    if encoder is not None and encoder.ndim == 4:
        check_channels(path, "a TAESD", encoder.shape[0], channels)
    if not any(name.startswith("decoder") for name in found):
        raise CheckpointError(
            f"{path} is the encoder of a TAESD alone, which cannot make pictures; give its "
            "decoder, with the encoder beside it: taesd_decoder beside taesd_encoder"
        )
    if encoder is None:
        module.encoder = None
    try:
        check_tensors(module.state_dict(), found, path)
    except CheckpointError as error:
        reason = str(error).partition(";")[0]
        raise CheckpointError(
            f"{reason}: it is a TAESD of another architecture, or damaged; give taesd or taesdxl"
        ) from None
    fill(module, found, path, dtype, device)
    return module


def last_of(tensors: Mapping[str, Stored], coder: str) -> Stored | None:
    """Return the weight of a coder's last layer; None without that coder."""
    found = (LAYER.match(name) for name in tensors if name.startswith(coder))
    numbers = [int(match[1]) for match in found if match]
    return tensors.get(f"{coder}.layers.{max(numbers)}.weight") if numbers else None


def taesd_names(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Rename a TAESD's tensors, of any tool's names, to ours; unknown ones stay.

    The original decoder counts the clamp of its input as layer 0.
    """
    renamed: dict[str, Stored] = {}
    alone = "encoder" if "0.weight" in tensors else "decoder"
    for name, value in tensors.items():
        match = TAESD_NAME.fullmatch(name)
        if match:
            coder, number = match["coder"] or alone, int(match["number"][:4])
            if coder == "decoder" and not match["layers"]:
                number -= 1
            name = f"{coder}.layers.{number}.{match['rest']}"
        renamed[name] = value
    return renamed
