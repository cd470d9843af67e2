"""The pictures that IP-Adapters read in a run: from a request to what each U-Net call is given.

Pictures are encoded, and their keys and values computed, once for each run. The rows of negative
prompts read an empty picture, as in diffusers: zeros for "base", else the states of a grey one.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.clip_vision import CLIPVisionEncoder
from ldm.config.checking import differs
from ldm.control.image_sources import (
    EMBEDS,
    IMAGE,
    Sources,
    check_embeds,
    mask_sources,
    read_masks,
    read_sources,
)
from ldm.control.ip_adapter import IPAdapter, merged
from ldm.control.ip_adapter_scale import attention_names, block_scales
from ldm.denoiser import UNetCall
from ldm.errors import ArgumentError
from ldm.images.clip_pixels import clip_pixels
from ldm.layers import KeysValues
from ldm.request import IP_ADAPTER, Request
from ldm.unet import ImagePrompt, UNet

LOAD = "load_ip_adapter(path), or --ip-adapter FILE"
ENCODER = "image_encoder=FOLDER of load_ip_adapter, or --image-encoder FOLDER"


@dataclass(eq=False)
class LoadedIPAdapter:
    """An IP-Adapter that a pipeline has loaded.

    Attributes:
        network, encoder: the adapter, and CLIP's vision encoder for it; None if none was found.
        label: its name in metadata.
        scale: as ``set_ip_adapter_scale`` set it.
        own: whether it is the model's own, which runs without pictures do not need.
    """

    network: IPAdapter
    encoder: CLIPVisionEncoder | None
    label: str
    scale: Any = 1.0
    own: bool = False

    @torch.no_grad()
    def encode(self, pictures: Sequence[Any], negative: bool = True) -> Tensor:
        """Encode RGB pictures: (1 or 2, n, P), or (1 or 2, n, N, P) of all patches.

        negative: whether the empty picture's states come first. Raises ArgumentError without an
        encoder.
        """
        if self.encoder is None:
            raise ArgumentError(
                f"the IP-Adapter {self.label} has no image encoder: give it as {ENCODER}"
            )
        like = self.encoder.visual_projection.weight
        size = self.encoder.config.image_size
        pixels = clip_pixels(pictures, size).to(like.dtype)
        states = self.states(pixels)[None]
        if not negative:
            return states
        return torch.cat([self.empty(states, pixels), states])

    def states(self, pixels: Tensor) -> Tensor:
        """Return what the adapter reads of pixels (n,3,S,S)."""
        assert self.encoder is not None
        device = next(self.network.parameters()).device
        found = self.encoder(pixels.to(device))
        return found.hidden_states if self.network.config.reads_patches else found.image_embeds

    def empty(self, states: Tensor, pixels: Tensor | None = None) -> Tensor:
        """Return the states of as many empty pictures as in (1,n,…)."""
        if not self.network.config.reads_patches:
            return torch.zeros_like(states)
        if self.encoder is None:
            raise ArgumentError(
                f"{EMBEDS} of {self.label} has 1 row, and guidance needs the states of an empty "
                f"picture before it; encode with encode_ip_adapter_image, or give {ENCODER}"
            )
        if pixels is None:
            size = self.encoder.config.image_size
            pixels = torch.zeros(states.shape[1], 3, size, size, dtype=states.dtype, device="cpu")
        return self.states(torch.zeros_like(pixels))[None].to(states)


class ImagePrompts:
    """The image prompts of a run: called for each U-Net call, it returns those of its rows."""

    def __init__(self, prompt: ImagePrompt, rows: int) -> None:
        """prompt: of two rows, for negative prompts and for texts; or of one, for texts."""
        self.prompt, self.rows = prompt, rows
        self._last: tuple[UNetCall, ImagePrompt] | None = None

    def __call__(self, call: UNetCall) -> ImagePrompt:
        """Return what the blocks read beside the texts of a call: the same at every step."""
        if self._last is None or self._last[0] is not call:
            each = [0 if text is None else self.rows - 1 for text in call.texts]
            rows = torch.tensor(each, device=call.pictures.device)
            self._last = (
                call,
                {
                    block: [KeysValues(p.keys[rows], p.values[rows], p.mask) for p in pictures]
                    for block, pictures in self.prompt.items()
                },
            )
        return self._last[1]


def refuse_unused(request: Request) -> None:
    """Raise ArgumentError for arguments of IP-Adapters if none is loaded."""
    for name in IP_ADAPTER:
        value = getattr(request, name)
        if value is not None and differs(value, getattr(Request, name)):
            raise ArgumentError(f"{name} is of an IP-Adapter, and none is loaded: {LOAD}")


def make_image_prompts(
    unet: UNet,
    adapters: Mapping[str, LoadedIPAdapter],
    request: Request,
    size: tuple[int, int],
    scale: int,
    negative: bool,
) -> ImagePrompts | None:
    """Return the image prompts of a run; None if no adapter has a picture and a scale.

    size: (height, width) of the latents. scale: pixels along a side for each of them. negative:
    whether the run has rows of negative prompts.
    Raises ArgumentError for pictures, embeddings, scales or masks that do not fit the adapters,
    ImageError for what cannot be read.
    """
    scales = run_scales(unet, adapters, request)
    sources = read_sources(request, list(adapters))
    if sources is None:
        if any(map(counts, scales)) and not all(each.own for each in adapters.values()):
            raise ArgumentError(
                f"{IMAGE} is missing, which {' and '.join(adapters)} would read; give it, or "
                "unload_ip_adapter(name)"
            )
        return None
    masks = mask_sources(request, list(adapters), [source.count for source in sources])
    found = []
    for adapter, one, source, layers in zip(adapters.values(), scales, sources, masks, strict=True):
        if not counts(one):
            continue
        check_number(one, source.count, adapter.label)
        states = source_states(adapter, source, negative)
        like = adapter.network.image_proj.parameters()
        first = next(like)
        maps = None
        with torch.no_grad():
            tokens = adapter.network(states.to(first.device, first.dtype))
            if layers is not None:
                pixels = read_masks(layers, (size[0] * scale, size[1] * scale))
                maps = block_masks(unet, pixels.to(tokens.device), size)
            found.append(adapter.network.prompt(unet, tokens, one, maps))
    return ImagePrompts(merged(found), 1 + negative) if found else None


def run_scales(unet: UNet, adapters: Mapping[str, LoadedIPAdapter], request: Request) -> list[Any]:
    """Return λ of each adapter as ``IPAdapter.prompt`` takes it."""
    given = request.ip_adapter_scale
    if not isinstance(given, list | tuple):
        given = [given] * len(adapters)  # type: ignore[list-item]
    if len(given) != len(adapters):
        raise ArgumentError(
            f"ip_adapter_scale has {len(given)} values for {len(adapters)} IP-Adapters; give one, "
            "or one for each"
        )
    blocks = request.ip_adapter_blocks
    pairs = zip(adapters.values(), given, strict=True)
    return [block_scales(unet, adapter.scale, factor, blocks) for adapter, factor in pairs]


def counts(scale: Any) -> bool:
    """Whether a scale is not 0 throughout."""
    if isinstance(scale, Mapping):
        return any(counts(one) for one in scale.values())
    return any(scale) if isinstance(scale, list | tuple) else bool(scale)


def check_number(scale: Any, pictures: int, label: str) -> None:
    """Raise ArgumentError for a list of scales that is not one for each picture."""
    for one in scale.values() if isinstance(scale, Mapping) else [scale]:
        if isinstance(one, list) and len(one) != pictures:
            raise ArgumentError(
                f"the scale of {label} has {len(one)} values for {pictures} pictures; give one, "
                "or one for each"
            )


def source_states(adapter: LoadedIPAdapter, source: Sources, negative: bool) -> Tensor:
    """Return the states (1 or 2, n, …) of an adapter's pictures, with ``negative`` two rows."""
    parts = []
    if source.pictures:
        parts.append(adapter.encode(source.pictures, negative))
    for embeds in source.embeds:
        check_embeds(embeds, adapter.network.config, adapter.label)
        states = embeds[-1:]
        if negative:
            states = torch.cat([embeds[:1] if len(embeds) == 2 else adapter.empty(states), states])
        parts.append(states)
    like = parts[0]
    return torch.cat([part.to(like) for part in parts], dim=1)


def block_masks(unet: UNet, masks: Tensor, size: tuple[int, int]) -> dict[nn.Module, Tensor]:
    """Return masks (n,H,W) at the size of each transformer block's feature map: (n, pixels).

    As ``IPAdapterMaskProcessor.downsample`` of diffusers, but by the true sizes of the feature
    maps, where that guesses them from their areas.
    """
    last = unet.config.levels - 1
    found: dict[nn.Module, Tensor] = {}
    known: dict[int, Tensor] = {}
    for name, blocks in attention_names(unet).items():
        way, index, *_ = name.split(".")
        level = last
        if way != "mid_block":
            level = int(index) if way == "down_blocks" else last - int(index)
        if level not in known:
            shape = [-(-side // 2**level) for side in size]
            small = F.interpolate(masks[None], size=shape, mode="bicubic")[0]
            known[level] = small.flatten(1)
        found |= dict.fromkeys(blocks, known[level])
    return found
