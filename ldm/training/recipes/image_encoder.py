"""Train a CLIP vision encoder against a model's text encoder, for its IP-Adapters.

Sources: Radford et al. 2021 (CLIP), figure 3, the loss; Zhai et al. 2022 (LiT), section 3: the one
encoder that is finished stays as it is.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.folder import save_component
from ldm.clip_vision import CLIPVisionEncoder
from ldm.config import CLIPVisionConfig
from ldm.config.settings import read_table, within
from ldm.images import to_pil
from ldm.images.clip_pixels import clip_pixels
from ldm.training.config import TrainConfig
from ldm.training.objectives import contrastive_loss
from ldm.training.recipes.base import Recipe
from ldm.training.recipes.captioned_data import captioned_pictures
from ldm.training.recipes.frozen_base import load_base
from ldm.training.warm_start import begin_with

ROWS = 64  # held-out pictures that are encoded at once


@dataclass
class ImageEncoderOptions:
    """The table ``[options]``."""

    base: str  # the model whose text encoder reads the captions, as ``ldm generate --model`` takes
    data: dict[str, Any] = field(default_factory=dict)  # how the pictures are read
    temperature: float = within("(0, inf)", 0.05)  # τ of the loss
    held_out: int = within("[2, inf)", 256)  # pictures among which captions are looked up


class ImageEncoderRecipe(Recipe[CLIPVisionEncoder]):
    """Learns states of pictures that are near the pooled states of their captions.

    Of SDXL's two text encoders, the second one's.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(ImageEncoderOptions, config.options, "options.")
        self.batch_size = config.batch_size
        self.data = captioned_pictures(config.data, options.data)
        self.text = load_base(options.base, "an image encoder")[0].text_models[-1]
        texts = self.text.encoder
        pooled = texts.config.hidden_size
        if texts.text_projection is not None:
            pooled = texts.config.projection_dim
        width = {"projection_dim": pooled}
        self.model = CLIPVisionEncoder(CLIPVisionConfig.from_dict({**width, **config.model}))
        begin_with(self.model, config.start)

    def prepare(self, accelerator: Accelerator) -> None:
        self.text.encoder.to(accelerator.device)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        rows = self.data.batch(step, self.batch_size, generator)
        return self.prepared(rows.pixels, rows.captions or [])

    def prepared(self, pixels: Tensor, captions: list[str]) -> dict[str, Tensor]:
        """Return pictures (B,3,H,W) in [-1, 1] and their captions as the encoders read them.

        Captions that are the same have the same number.
        """
        numbers = {text: i for i, text in enumerate(dict.fromkeys(captions))}
        return {
            "pictures": clip_pixels(to_pil(pixels), self.model.config.image_size),
            "ids": torch.tensor(self.text.tokenizer(captions)),
            "caption": torch.tensor([numbers[text] for text in captions]),
        }

    def example(self, count: int) -> dict[str, Tensor]:
        return self.batch(0, torch.Generator().manual_seed(0)) if count else {}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        with torch.no_grad():
            texts = self.text.encoder(batch["ids"]).pooled
        found = model(batch["pictures"]).image_embeds
        return contrastive_loss(found, texts, batch["caption"], self.options.temperature), {}

    @torch.no_grad()
    def evaluate(self, model: CLIPVisionEncoder) -> tuple[Image.Image | None, dict[str, float]]:
        """Return how many held-out pictures are nearest to their own caption, of all of them."""
        rows = self.data.held_out[: self.options.held_out]
        if not len(rows):
            return None, {}
        captions, found = self.data.captions(rows), []
        for part in rows.split(ROWS):
            prepared = self.prepared(self.data.pixels(part), self.data.captions(part))
            found.append(model(prepared["pictures"]).image_embeds)
        ids = torch.tensor(self.text.tokenizer(captions))
        texts = torch.cat([self.text.encoder(part).pooled for part in ids.split(ROWS)])
        pictures = torch.nn.functional.normalize(torch.cat(found), dim=-1)
        nearest = (pictures @ torch.nn.functional.normalize(texts, dim=-1).T).argmax(1).tolist()
        right = [captions[i] == text for i, text in zip(nearest, captions, strict=True)]
        return None, {"own_caption": sum(right) / len(right)}

    def save(self, model: CLIPVisionEncoder, folder: Path) -> None:
        """Write ``image_encoder/``: ``ldm generate --image-encoder`` takes it."""
        save_component(model, folder / "image_encoder", torch.float16)
