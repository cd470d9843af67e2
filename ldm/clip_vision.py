"""CLIP's vision encoder: pictures (B,3,S,S) → a state for each patch (B,N,D), one for all (B,P).

Source: Radford et al. 2021 (CLIP), section 2.4; Dosovitskiy et al. 2021 (ViT), section 3.1. The
layers are those of the text encoder (``ldm.clip``), except that every token attends to all.
Modules are named as in transformers' ``CLIPVisionModelWithProjection``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.clip import EncoderStack
from ldm.config import CLIPVisionConfig
from ldm.errors import ArgumentError


class ImageStates(NamedTuple):
    """What the encoder returns."""

    image_embeds: Tensor  # (B,P): one state for the picture, in the space that texts share
    # (B,N,D): before the last layer, first the class token's, then each patch's, row by row;
    # transformers' ``hidden_states[-2]``.
    hidden_states: Tensor


class VisionEmbeddings(nn.Module):
    """Patches as vectors after a class token, with positions added: (B,3,S,S) → (B,N,D)."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.class_embedding = nn.Parameter(torch.randn(width) * width**-0.5)
        self.patch_embedding = nn.Conv2d(3, width, patch, stride=patch, bias=False)
        self.position_embedding = nn.Embedding(config.tokens, width)

    def forward(self, pictures: Tensor) -> Tensor:
        x = rearrange(self.patch_embedding(pictures), "b d h w -> b (h w) d")
        first = self.class_embedding.expand(len(x), 1, -1)
        return torch.cat([first, x], dim=1) + self.position_embedding.weight


class VisionTransformer(nn.Module):
    """Embeddings, layers and the norms; the name that checkpoints call ``vision_model``."""

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.embeddings = VisionEmbeddings(config)
        self.pre_layrnorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)  # so spelled
        self.encoder = EncoderStack(config, causal=False)
        self.post_layernorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class CLIPVisionEncoder(nn.Module):
    """``CLIPVisionModelWithProjection``: by ``CLIPVisionConfig``."""

    config_class = CLIPVisionConfig
    weight_stem = "model"

    def __init__(self, config: CLIPVisionConfig) -> None:
        super().__init__()
        self.config = config
        self.vision_model = VisionTransformer(config)
        self.visual_projection = nn.Linear(config.hidden_size, config.projection_dim, bias=False)

    def forward(self, pictures: Tensor) -> ImageStates:
        """Encode pictures (B,3,S,S), normalised as by ``ldm.images.clip_pixels``; S: image_size.

        Raises ArgumentError for another size.
        """
        size = self.config.image_size
        if pictures.shape[1:] != (3, size, size):
            raise ArgumentError(
                f"pictures has the shape {tuple(pictures.shape)}; expected (B, 3, {size}, {size})"
            )
        model = self.vision_model
        before, x = model.encoder(model.pre_layrnorm(model.embeddings(pictures)), 1)
        return ImageStates(self.visual_projection(model.post_layernorm(x[:, 0])), before)
