"""An IP-Adapter's file → the module; and back.

Files are those of the authors (tencent-ailab/IP-Adapter, h94/IP-Adapter): pickles of two tables,
"image_proj" and "ip_adapter", or safetensors with these before the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.deferred import Deferred, Stored
from ldm.checkpoints.family import UNET
from ldm.checkpoints.folder import empty, fill
from ldm.checkpoints.formats import IP_ADAPTER
from ldm.checkpoints.kinds import article, find_adapter, find_other, is_embedding, listed
from ldm.checkpoints.lora_first import plain_names
from ldm.checkpoints.lora_kinds import describe_kinds, group
from ldm.checkpoints.plain import check_mapping
from ldm.checkpoints.tensors import read_content, to_save, write_tensors
from ldm.config import IPAdapterConfig, UNetConfig
from ldm.config.ip_adapter import HEAD_DIM, cross_attention_widths
from ldm.control.ip_adapter import IPAdapter
from ldm.errors import CheckpointError
from ldm.loading.controlnet import named

NAME = "ip_adapter.safetensors"  # of the file in a folder that ldm writes
KEY = re.compile(r"ip_adapter\.(\d+)\.to_k_ip\.weight")
FACE = "an IP-Adapter FaceID, which needs a face recogniser; those are not supported"
MOST_LAYERS = 64  # of a resampler; published ones have 8 at most
ARCFACE = 512  # width of a face recogniser's embedding, which InstantID reads
WAYS = {
    "ControlNet": "--controlnet FILE", "Control-LoRA": "--controlnet FILE", "LoRA": "--lora FILE",
    "VAE": "--vae FILE", "CLIP text encoder": "--text-encoder FILE",
    "CLIP image encoder": "--image-encoder FILE",
}  # fmt: skip
UNSUPPORTED = "only IP-Adapters of Stable Diffusion 1.x, 2.x and XL are supported"
Shapes = Mapping[str, tuple[int, ...]]


def load_ip_adapter(
    path: Path, unet: UNetConfig, dtype: torch.dtype | None, device: torch.device
) -> IPAdapter:
    """Load an IP-Adapter for a model with such a U-Net.

    Raises CheckpointError for a file that is missing, broken or of another kind, and for an
    IP-Adapter of another family, by name.
    """
    if not path.is_file():
        raise CheckpointError(f"{path} does not exist; give an IP-Adapter's file")
    tensors = read_adapter(path)
    shapes = {name: tuple(value.shape) for name, value in tensors.items()}
    check_kind(path, shapes)
    config = config_of(path, shapes)
    check_fits(path, config, unet)
    module = empty(IPAdapter, config)
    fill(module, tensors, path, dtype, device, finite=True)
    return module


def save_ip_adapter(adapter: IPAdapter, path: str | Path, dtype: torch.dtype | None = None) -> None:
    """Write an IP-Adapter as a safetensors file that diffusers and the web UIs read, too.

    dtype: None keeps the module's. Raises OSError, such as for a full disk.
    """
    write_tensors(to_save(adapter.state_dict(), dtype), Path(path))


def find_file(path: Path, subfolder: str | None, weight_name: str | None) -> Path:
    """Return the file that a path names: itself, one in a folder as in diffusers, or ldm's own.

    Raises CheckpointError for a folder in which nothing is named.
    """
    if subfolder:
        path = path / subfolder
    if weight_name:
        path = path / weight_name
    if path.is_dir():
        for inner in (path / NAME, path / "ip_adapter" / NAME):
            if inner.is_file():
                return inner
        known = sorted(f.name for f in path.iterdir() if f.suffix in (".safetensors", ".bin"))
        shown = ", ".join(known[:8]) or "none"
        raise CheckpointError(
            f"{path} is a folder without {NAME}; give one of its files, such as with weight_name: "
            f"{shown}"
        )
    return path


def encoder_folders(file: Path, folder: str, model: Path | None) -> list[Path]:
    """Return where the encoder of an adapter's file may be: as in h94/IP-Adapter, or the model's.

    folder: its name, "image_encoder" as a rule.
    """
    here = file.parent
    found = [here / folder, here.parent / folder, here.parent / "models" / folder]
    return found if model is None else [*found, model / folder]


def read_adapter(path: Path) -> dict[str, Stored]:
    """Read the tensors of a file under flat names."""
    content, _ = read_content(path)
    flat: dict[str, Any] = {}
    for name, value in content.items() if isinstance(content, Mapping) else ():
        if name in IP_ADAPTER and isinstance(value, Mapping):
            flat |= {f"{name}.{key}": inner for key, inner in value.items()}
        else:
            flat[str(name)] = value
    whole = flat if isinstance(content, Mapping) else content
    return check_mapping(path, whole, Tensor, Deferred)


def check_kind(path: Path, shapes: Shapes) -> None:
    """Raise CheckpointError for anything but an IP-Adapter of CLIP's states, by name."""
    names = listed(shapes)
    if re.search(
        r"^ip_adapter\.(?:\d+\.)?to_\w+_lora\.|^image_proj\.perceiver_resampler\.",
        names,
        re.MULTILINE,
    ):
        raise CheckpointError(f"{path} is {FACE}")
    if "image_proj.norm.weight" in shapes and "image_proj.proj.0.weight" in shapes:
        raise CheckpointError(f"{path} is {FACE}")
    if any(KEY.fullmatch(name) for name in shapes):
        return
    kind = find_adapter(names)
    if kind is not None and kind.name == "IP-Adapter":
        raise CheckpointError(f"{path} is an IP-Adapter of another architecture; {UNSUPPORTED}")
    if f"{UNET}input_blocks.0.0.weight" in shapes:
        raise CheckpointError(
            f"{path} is a model, not an IP-Adapter; give it as the model: --model FILE"
        )
    if kind is None and (loras := describe_kinds(group(plain_names(shapes))[0])):
        raise CheckpointError(f"{path} is a {loras[0]}, not an IP-Adapter; give it as --lora FILE")
    if kind is None and is_embedding(shapes):
        raise CheckpointError(
            f"{path} is a textual inversion, not an IP-Adapter; give it as --embedding FILE"
        )
    kind = kind or find_other(names)
    if kind is None:
        shown = ", ".join(list(shapes)[:3]) or "nothing"
        raise CheckpointError(f"{path} is not an IP-Adapter: it holds {shown}, …")
    way = f"give it as {WAYS[kind.name]}" if kind.name in WAYS else "those are not supported here"
    raise CheckpointError(f"{path} is {article(kind.name)}, not an IP-Adapter; {way}")


def config_of(path: Path, shapes: Shapes) -> IPAdapterConfig:
    """Return the configuration of a file's adapter, by the shapes in it.

    Raises CheckpointError for shapes of no kind that is known.
    """
    numbers = sorted(int(match[1]) for name in shapes if (match := KEY.fullmatch(name)))
    if numbers != list(range(1, 2 * len(numbers), 2)):
        raise CheckpointError(
            f"{path} has cross-attentions numbered {numbers[:4]}, …; expected 1, 3, 5, …: it is "
            f"damaged, or of another architecture; {UNSUPPORTED}"
        )
    keys = [shapes[f"ip_adapter.{number}.to_k_ip.weight"] for number in numbers]
    proj = {n.removeprefix("image_proj."): s for n, s in shapes.items()}
    try:
        layers: dict[str, Any] = {
            "layer_widths": tuple(key[0] for key in keys),
            "cross_attention_dim": keys[0][1],
        }
        return IPAdapterConfig(**layers, **projection_of(proj))
    except (KeyError, IndexError, ValueError, ZeroDivisionError):
        shown = ", ".join(name for name in shapes if name.startswith("image_proj"))[:80]
        raise CheckpointError(
            f"{path} makes tokens of pictures by {shown or 'nothing'}, which is not known; "
            f"{UNSUPPORTED}"
        ) from None
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def projection_of(proj: Shapes) -> dict[str, Any]:
    """Return the fields of the image projection with such shapes.

    Raises KeyError, IndexError, ValueError or ZeroDivisionError for others.
    """
    if "proj.weight" in proj:
        rows, width = proj["proj.weight"]
        tokens = rows // proj["norm.weight"][0]
        return {"kind": "base", "image_width": width, "num_tokens": tokens}
    if "proj.3.weight" in proj:
        return {"kind": "full", "image_width": proj["proj.0.weight"][1]}
    _, tokens, hidden = proj["latents"]
    width = proj["proj_in.weight"][1]
    if width == ARCFACE:
        raise CheckpointError(f"it is InstantID's or {FACE}")
    depth = {match[1] for name in proj if (match := re.match(r"layers\.(\d+)\.", name))}
    if len(depth) > MOST_LAYERS:
        raise CheckpointError(f"it has {len(depth):,} layers; expected {MOST_LAYERS} at most")
    return {
        "kind": "plus", "image_width": width, "num_tokens": tokens, "hidden_size": hidden,
        "num_heads": proj["layers.0.0.to_q.weight"][0] // HEAD_DIM, "num_layers": len(depth),
    }  # fmt: skip


def check_fits(path: Path, config: IPAdapterConfig, unet: UNetConfig) -> None:
    """Raise CheckpointError for an IP-Adapter of another family than the U-Net."""
    mine, its = unet.cross_attention_dim, config.cross_attention_dim
    if mine is None:
        raise CheckpointError(f"{path} is an IP-Adapter, but this model reads no text")
    if mine != its:
        raise CheckpointError(
            f"{path} is an IP-Adapter for {named(its)}; this model is {named(mine)}: give an "
            "IP-Adapter that was made for it"
        )
    wanted: Sequence[int] = cross_attention_widths(unet)
    if config.layer_widths != wanted:
        raise CheckpointError(
            f"{path} is an IP-Adapter for {len(config.layer_widths)} cross-attentions of widths "
            f"{shown(config.layer_widths)}; this model's U-Net has {len(wanted)} of "
            f"{shown(wanted)}: give an IP-Adapter that was made for it"
        )


def shown(widths: Sequence[int]) -> str:
    """List the different widths."""
    return ", ".join(map(str, dict.fromkeys(widths)))
