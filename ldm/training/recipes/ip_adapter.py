"""Train an IP-Adapter for a model whose weights stay as they are (Ye et al. 2023, eq. 6)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.folder import load_component
from ldm.clip_vision import CLIPVisionEncoder
from ldm.config.settings import read_table, within
from ldm.control.image_prompts import LoadedIPAdapter
from ldm.control.ip_adapter import IPAdapter
from ldm.images import image_grid, to_pil
from ldm.images.clip_pixels import clip_pixels
from ldm.loading.ip_adapter import NAME, save_ip_adapter
from ldm.training.config import TrainConfig
from ldm.training.recipes.cached_latents import Drawn
from ldm.training.recipes.frozen_base import FrozenBaseOptions, FrozenBaseRecipe, mirror
from ldm.training.warm_start import begin_with
from ldm.unet import ImagePrompt, UNet

BOTH = 0.5  # of the rows without a caption, the share without a picture too (section 4.1)


@dataclass(kw_only=True)
class IPAdapterOptions(FrozenBaseOptions):
    """The table ``[options]``."""

    image_encoder: str  # folder of the finished one
    prompts: list[str]  # drawn with held-out pictures, to show the progress
    image_dropout: float = within("[0, 1]", 0.05)  # share of other rows without their picture


class PictureTokens(nn.Module):
    """An IP-Adapter with all that is trained in one call, as several processes need it."""

    def __init__(self, adapter: IPAdapter, unet: UNet) -> None:
        super().__init__()
        self.adapter = adapter
        self._unet = [unet]  # in a list, so that it is not part of what is trained

    def forward(self, states: Tensor) -> ImagePrompt:
        """Return what the U-Net reads of one picture for each row: states (B,P) or (B,N,P)."""
        return self.adapter.prompt(self._unet[0], self.adapter(states[:, None]))


class IPAdapterRecipe(FrozenBaseRecipe[PictureTokens]):
    """Learns to let a frozen U-Net read a picture beside the text.

    Raises ArgumentError for options that do not go together, CheckpointError for parts that cannot
    be loaded.
    """

    reads_crops = False  # as diffusers' examples train it

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(IPAdapterOptions, config.options, "options.")
        super().__init__(config, options, "an IP-Adapter")
        unet = self.pipe.unet
        folder = Path(options.image_encoder)
        self.encoder = load_component(CLIPVisionEncoder, folder, torch.float32)
        self.encoder.requires_grad_(False)
        width = self.encoder.config.projection_dim
        if config.model.get("kind", "base") != "base":
            width = self.encoder.config.hidden_size
        adapter = IPAdapter.from_unet(unet, **{"image_width": width, **config.model})
        begin_with(adapter, config.start)
        self.model = PictureTokens(adapter, unet)

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        self.encoder.to(accelerator.device)

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().noised(drawn, generator)
        pixels = mirror(self.data.pixels(drawn.rows, self.picture_size(drawn)), drawn)
        chance = torch.full((len(pixels),), self.options.image_dropout)
        chance[batch["dropped"]] = BOTH
        batch["without"] = torch.rand(len(pixels), generator=generator) < chance
        return batch | {"pictures": clip_pixels(to_pil(pixels), self.encoder.config.image_size)}

    def example(self, count: int) -> dict[str, Tensor]:
        size = self.encoder.config.image_size
        pictures = torch.zeros(count, 3, size, size)
        return super().example(count) | {
            "pictures": pictures,
            "without": torch.zeros(count, dtype=torch.bool),
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        conditions, x_t = self.conditions(batch), self.x_t(batch)
        prompt = as_computed(model(self.states(batch["pictures"], batch["without"])), x_t)
        output = self.pipe.unet(x_t, batch["t"], **conditions, image_prompt=prompt)
        return self.error(output, batch)

    @torch.no_grad()
    def states(self, pictures: Tensor, without: Tensor) -> Tensor:
        """Return what the adapter reads of pictures (B,3,S,S), of an empty one ``without``."""
        loaded = LoadedIPAdapter(self.model.adapter, self.encoder, "trained")
        found = loaded.states(pictures)
        found[without] = loaded.empty(found[None, :1], pictures[:1])[0].to(found)
        return found

    def evaluate(self, model: PictureTokens) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw each prompt with a held-out picture: the pictures over what is drawn."""
        prompts, held_out = self.options.prompts, self.data.held_out
        if not len(held_out):
            return None, {}
        rows = held_out[torch.arange(len(prompts)) * len(held_out) // len(prompts)]
        pictures = to_pil(self.data.pixels(rows, self.latents.sizes[0]))
        self.pipe.ip_adapters["trained"] = LoadedIPAdapter(model.adapter, self.encoder, "trained")
        try:
            pairs = enumerate(zip(prompts, pictures, strict=True))
            drawn = [
                cast("list[Image.Image]", self.pipe(prompt, ip_adapter_image=one, seed=i).images)[0]
                for i, (prompt, one) in pairs
            ]
        finally:
            del self.pipe.ip_adapters["trained"]
        return image_grid([*pictures, *drawn], columns=len(prompts)), {}

    def save(self, model: PictureTokens, folder: Path) -> None:
        """Write ``ip_adapter/``: ``ldm generate --ip-adapter`` takes its file."""
        (folder / "ip_adapter").mkdir(parents=True, exist_ok=True)
        save_ip_adapter(model.adapter, folder / "ip_adapter" / NAME, torch.float16)


def as_computed(prompt: ImagePrompt, like: Tensor) -> ImagePrompt:
    """Return keys and values in the type that attention computes with on the device of ``like``.

    accelerate makes all outputs of what is trained float32.
    """
    device = like.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else like.dtype
    return {
        block: [p._replace(keys=p.keys.to(dtype), values=p.values.to(dtype)) for p in each]
        for block, each in prompt.items()
    }
