"""A T2I-Adapter's folder or file → the module.

Files have diffusers' names, or those of the authors' code (TencentARC/T2I-Adapter,
``ldm/modules/encoders/adapter.py``), bare or under "adapter.". Source: Mou et al. 2023.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch

from ldm.checkpoints.deferred import Stored
from ldm.checkpoints.folder import empty, fill, load_component, read_weights
from ldm.checkpoints.kinds import article, find_adapter, find_other, listed
from ldm.checkpoints.t2i_adapter import config_of, diffusers_names, family_names
from ldm.checkpoints.tensors import read_checkpoint
from ldm.config import UNetConfig, read_json
from ldm.config.controlnet import CLASS as CONTROLNET_CLASS
from ldm.config.picture_readers import T2I_ADAPTER
from ldm.config.t2i_adapter import CLASS, T2IAdapterConfig, unet_places
from ldm.control.t2i_adapter import T2IAdapter
from ldm.errors import CheckpointError
from ldm.loading.other_kinds import refuse_other

Shapes = Mapping[str, tuple[int, ...]]
STYLE = "T2I-Adapter of styles"
SUPPORTED = "only T2I-Adapters of Stable Diffusion 1.x, 2.x and XL are supported"


def load_t2i_adapter(
    path: Path, unet: UNetConfig, scale: int, dtype: torch.dtype | None, device: torch.device
) -> T2IAdapter:
    """Load a T2I-Adapter for a model with such a U-Net, and ``scale`` pixels for each latent.

    Raises CheckpointError for a file or a folder that is missing, broken or of another kind, and
    for a T2I-Adapter of another family, by name.
    """
    if path.is_dir():
        folder = adapter_folder(path)
        check_fits(folder, T2IAdapterConfig.from_file(folder / "config.json"), unet, scale)
        return load_component(T2IAdapter, folder, dtype, device, finite=True)
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give a T2I-Adapter's folder or file")
    beside = path.parent / "config.json"
    if path.name.startswith(T2IAdapter.weight_stem):
        values = read_json(beside, optional=True)
        if values.get("_class_name") == CLASS:
            config = T2IAdapterConfig.from_dict(values, str(beside))
            check_fits(path, config, unet, scale)
            module = empty(T2IAdapter, config)
            fill(module, read_weights(path), path, dtype, device, finite=True)
            return module
    return read_t2i_adapter(path, read_checkpoint(path).tensors, unet, scale, dtype, device)


def adapter_folder(folder: Path) -> Path:
    """Return the folder itself, or "adapter" in a pipeline's, whose config is a T2I-Adapter's."""
    inner = folder / "adapter"
    if inner.is_dir():
        folder = inner
    elif (folder / "model_index.json").exists():
        raise CheckpointError(
            f"{folder} is a model without a T2I-Adapter; give it as the model: --model FOLDER"
        )
    kind = str(read_json(folder / "config.json").get("_class_name"))
    if kind == CONTROLNET_CLASS:
        raise CheckpointError(
            f"{folder} is a ControlNet, not a T2I-Adapter; give it as --controlnet FOLDER"
        )
    if kind != CLASS:
        raise CheckpointError(f"{folder / 'config.json'} is of {article(kind)}; {SUPPORTED}")
    return folder


def read_t2i_adapter(
    path: Path,
    tensors: Mapping[str, Stored],
    unet: UNetConfig,
    scale: int,
    dtype: torch.dtype | None,
    device: torch.device,
) -> T2IAdapter:
    """Make a T2I-Adapter of a file's tensors."""
    check_kind(path, {name: tuple(value.shape) for name, value in tensors.items()})
    names = diffusers_names(tensors)
    found = {names[name]: value for name, value in tensors.items()}
    if len(found) < len(tensors):
        raise CheckpointError(f"{path} has tensors of diffusers' and of the authors' names at once")
    config = config_of(path, {name: tuple(value.shape) for name, value in found.items()})
    check_fits(path, config, unet, scale)
    module = empty(T2IAdapter, config)
    expected = {name: tuple(value.shape) for name, value in module.state_dict().items()}
    for name, value in found.items():
        if tuple(value.shape) != expected.get(name):
            raise CheckpointError(
                f"{path} has {name} {tuple(value.shape)}, which no published T2I-Adapter has; it "
                "is of another architecture, which is not supported"
            )
    fill(module, found, path, dtype, device, finite=True)
    return module


def check_kind(path: Path, shapes: Shapes) -> None:
    """Raise CheckpointError for anything but a T2I-Adapter, with what to do with it."""
    names = listed(shapes)
    other = find_other(names)
    if other and other.name == STYLE:
        raise CheckpointError(
            f"{path} is {article(STYLE)}, which reads what CLIP sees in a picture; it is not "
            f"supported: {SUPPORTED} that read a picture"
        )
    if find_adapter(names) or other is None or other.name != T2I_ADAPTER.name:
        refuse_other(path, shapes, T2I_ADAPTER, SUPPORTED)


def check_fits(path: Path, config: T2IAdapterConfig, unet: UNetConfig, scale: int) -> None:
    """Raise CheckpointError for features that are not of the U-Net's widths and resolutions."""
    if unet.cross_attention_dim is None:
        raise CheckpointError(f"{path} is a T2I-Adapter, but this model reads no text")
    mine, its = unet_places(unet, scale), config.places
    if its != mine[: len(its)]:
        raise CheckpointError(
            f"{path} is a T2I-Adapter for {family_names(its)}; this model is "
            f"{family_names(mine)}: give a T2I-Adapter that was made for it"
        )
