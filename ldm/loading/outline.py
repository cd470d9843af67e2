"""The networks of a model on disk, from configs and headers: no tensor is read."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from torch import nn

from ldm.checkpoints.family import UNET, VAE, detect
from ldm.checkpoints.folder import empty, find_weights
from ldm.checkpoints.formats import GGUF, PICKLE, find_format
from ldm.checkpoints.gguf_header import read_gguf_header
from ldm.checkpoints.header import DTYPE_BITS, Header, TensorInfo, read_header
from ldm.checkpoints.pickle_header import read_pickle_header
from ldm.checkpoints.prediction import read_beside
from ldm.clip import CLIPTextEncoder
from ldm.config import CLIPTextConfig, TAESDConfig, UNetConfig, VAEConfig, read_json
from ldm.errors import CheckpointError
from ldm.fast.int8_weights import sizes_in_8_bits
from ldm.fast.sequential import held
from ldm.loading.devices import vae_dtype
from ldm.memory.estimate import Networks
from ldm.taesd import AutoencoderTiny
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

TEXTS = ("text_encoder", "text_encoder_2")


def read_outline(
    path: Path, dtype: torch.dtype | None, device: str, variant: str | None = None
) -> Networks:
    """Read what a model in a folder or a single file would be, on a device ("cpu" or "cuda").

    dtype: that it is loaded in; None keeps those of the files. Raises CheckpointError for what
    cannot be read.
    """
    codec_dtype = vae_dtype(dtype)
    if path.is_dir():
        unet, codec, texts, stored = _folder(path, variant)
    else:
        unet, codec, texts, stored = _file(path)
    weights = {
        name: _size(infos, codec_dtype if name == "vae" else dtype)
        for name, infos in stored.items()
    }
    itemsize = _itemsize(stored["unet"], dtype)
    codec_itemsize = _itemsize(stored.get("vae", []), codec_dtype)
    found = Networks(unet, codec, texts, weights, False, itemsize, codec_itemsize, device=device)
    if device != "cuda":
        return found
    parts = _parts(found)
    return replace(found, by_blocks=held(parts.values()), in_8_bits=sizes_in_8_bits(parts))


def _parts(found: Networks) -> dict[str, nn.Module]:
    """Make the networks, without memory."""
    sizes = found.itemsize, found.codec_itemsize
    dtype, codec_dtype = (_DTYPE_OF.get(size, torch.float32) for size in sizes)
    parts: dict[str, nn.Module] = {"unet": empty(UNet, found.unet).to(dtype)}
    names = [name for name in TEXTS if name in found.weights]
    for name, text in zip(names, found.texts, strict=True):
        parts[name] = empty(CLIPTextEncoder, text).to(dtype)
    if isinstance(found.codec, VAEConfig):
        parts["vae"] = empty(AutoencoderKL, found.codec).to(codec_dtype)
    elif found.codec is not None:
        parts["vae"] = empty(AutoencoderTiny, found.codec).to(codec_dtype)
    return parts


_DTYPE_OF = {2: torch.bfloat16, 8: torch.float64}  # by the bytes of a value; else float32
Parts = dict[str, list[TensorInfo]]
Outline = tuple[UNetConfig, VAEConfig | TAESDConfig | None, tuple[CLIPTextConfig, ...], Parts]


def _folder(folder: Path, variant: str | None) -> Outline:
    index = read_json(folder / "model_index.json")
    inner = folder / "unet"
    stored: Parts = {"unet": _part(inner if inner.is_dir() else folder, variant)}
    unet = UNetConfig.from_file((inner if inner.is_dir() else folder) / "config.json")
    codec: VAEConfig | TAESDConfig | None = None
    if (folder / "vae").is_dir():
        tiny = index.get("vae", [None, None])[-1] == "AutoencoderTiny"
        codec = (TAESDConfig if tiny else VAEConfig).from_file(folder / "vae" / "config.json")
        stored["vae"] = _part(folder / "vae", variant)
    texts = []
    for name in TEXTS:
        if (folder / name).is_dir():
            texts.append(CLIPTextConfig.from_file(folder / name / "config.json"))
            stored[name] = _part(folder / name, variant, "model")
    return unet, codec, tuple(texts), stored


def _part(
    folder: Path, variant: str | None, stem: str = "diffusion_pytorch_model"
) -> list[TensorInfo]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading warns of a missing variant
        file = find_weights(folder, stem, variant)
    files = {file.name}
    if file.suffix == ".json":
        places = read_json(file).get("weight_map")
        if not isinstance(places, dict):
            raise CheckpointError(f"{file} has no weight_map; get the model again")
        files = {Path(str(name)).name for name in places.values()}
    return [info for name in files for info in _header(folder / name).tensors.values()]


def _file(path: Path) -> Outline:
    header = _header(path)
    shapes = {name: info.shape for name, info in header.tensors.items()}
    family = detect(shapes, header.metadata, str(path), beside=read_beside(path))
    prefixes = {"unet": UNET, "vae": VAE} | {text.part: text.prefix for text in family.texts}
    stored = {
        part: [info for name, info in header.tensors.items() if name.startswith(prefix)]
        for part, prefix in prefixes.items()
    }
    return family.unet, family.vae, tuple(text.config for text in family.texts), stored


def _header(path: Path) -> Header:
    kind = find_format(path)
    if kind == PICKLE:
        return read_pickle_header(path)[0]
    return read_gguf_header(path) if kind == GGUF else read_header(path)


def _size(infos: Iterable[TensorInfo], dtype: torch.dtype | None) -> int:
    return sum(info.size if dtype is None else info.count * dtype.itemsize for info in infos)


def _itemsize(infos: list[TensorInfo], dtype: torch.dtype | None) -> int:
    """Return the bytes of a value; of files in narrow formats, those that they become."""
    if dtype is not None:
        return dtype.itemsize
    return max((DTYPE_BITS.get(info.dtype, 32) // 8 for info in infos), default=4) or 2
