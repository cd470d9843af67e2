"""The CLIP text encoder: token ids (B,77) → a state for each token (B,77,D) and one for all (B,P).

Source: Radford et al. 2021 (CLIP), section 2.4: a causal transformer whose state at the
end-of-text token stands for the sentence.
"""

from __future__ import annotations

from collections import deque
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.config import CLIPTextConfig
from ldm.config.clip import CLIPConfig
from ldm.errors import ArgumentError


class TextStates(NamedTuple):
    """What the encoder returns."""

    context: Tensor  # (B,77,D): a state for each token, for cross-attention
    pooled: Tensor  # (B,P): one state for the sentence


def quick_gelu(x: Tensor) -> Tensor:
    """Compute x·σ(1.702x), OpenAI's approximation of GELU (Hendrycks & Gimpel 2016, section 2)."""
    return x * torch.sigmoid(1.702 * x)


class Embeddings(nn.Module):
    """Sum of a token's embedding and its position's: (B,N) → (B,N,D).

    Ids past the vocabulary belong to textual inversions, whose vectors are ``extra`` (n,D). Some
    words have states to put in place of the encoder's: ``outputs``, with their ids (m,), (m,D).
    """

    extra: Tensor | None = None
    outputs: tuple[Tensor, Tensor] | None = None

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size)

    def forward(self, ids: Tensor) -> Tensor:
        if self.extra is None:
            x = self.token_embedding(ids)
        else:
            known = self.token_embedding.num_embeddings
            x = self.token_embedding(ids.clamp(max=known - 1))
            new = ids >= known
            x[new] = self.extra.to(x)[ids[new] - known]
        return x + self.position_embedding.weight[: ids.shape[1]]

    def replace_outputs(self, ids: Tensor, context: Tensor) -> Tensor:
        """Put ``outputs`` into the encoder's states (B,N,D) where their ids stand."""
        if self.outputs is None:
            return context
        known, states = (value.to(ids.device) for value in self.outputs)
        same = ids[:, :, None] == known
        rows, places, words = same.nonzero(as_tuple=True)
        context = context.clone()
        context[rows, places] = states[words].to(context)
        return context


class SelfAttention(nn.Module):
    """Multi-head self-attention; causal, each token attends to itself and those before it."""

    def __init__(self, config: CLIPConfig, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.heads = config.num_attention_heads
        width = config.hidden_size
        self.q_proj, self.k_proj = nn.Linear(width, width), nn.Linear(width, width)
        self.v_proj, self.out_proj = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(y, "b n (h d) -> b h n d", h=self.heads)
            for y in (self.q_proj(x), self.k_proj(x), self.v_proj(x))
        )
        x = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        return self.out_proj(rearrange(x, "b h n d -> b n (h d)"))


class MLP(nn.Module):
    """Two linear layers with the checkpoint's variant of GELU between them."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.activation = quick_gelu if config.hidden_act == "quick_gelu" else F.gelu
        self.fc1 = nn.Linear(config.hidden_size, config.intermediate_size)
        self.fc2 = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.activation(self.fc1(x)))


class EncoderLayer(nn.Module):
    """Pre-norm transformer layer."""

    def __init__(self, config: CLIPConfig, causal: bool) -> None:
        super().__init__()
        self.layer_norm1 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.self_attn = SelfAttention(config, causal)
        self.layer_norm2 = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.mlp = MLP(config)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.self_attn(self.layer_norm1(x))
        return x + self.mlp(self.layer_norm2(x))


class EncoderStack(nn.Module):
    """The stack of layers."""

    def __init__(self, config: CLIPConfig, causal: bool) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            EncoderLayer(config, causal) for _ in range(config.num_hidden_layers)
        )

    def forward(self, x: Tensor, skip: int = 0) -> tuple[Tensor, Tensor]:
        """Return the states (B,N,D) before the last ``skip`` layers, and those after all."""
        states = deque([x], maxlen=skip + 1)
        for layer in self.layers:
            states.append(layer(states[-1]))
        return states[0], states[-1]


class TextTransformer(nn.Module):
    """Embeddings, layers and the final norm; the name that checkpoints call ``text_model``."""

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.embeddings = Embeddings(config)
        self.encoder = EncoderStack(config, causal=True)
        self.final_layer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)


class CLIPTextEncoder(nn.Module):
    """``CLIPTextModel``, or with a ``text_projection``, ``CLIPTextModelWithProjection``."""

    config_class = CLIPTextConfig
    weight_stem = "model"

    def __init__(self, config: CLIPTextConfig) -> None:
        super().__init__()
        self.config = config
        self.text_model = TextTransformer(config)
        self.text_projection = (
            nn.Linear(config.hidden_size, config.projection_dim, bias=False)
            if "CLIPTextModelWithProjection" in config.architectures
            else None
        )

    def forward(self, ids: Tensor, skip: int = 0, norm: bool = True) -> TextStates:
        """Encode token ids (B,N), N ≤ 77.

        skip: how many of the last layers the context leaves out (0: none). norm: whether the
        context gets the final norm; SDXL's does not. ``pooled`` always comes from the last layer
        and the norm, as in diffusers. Raises ArgumentError if ``skip`` leaves no layer.
        """
        model, layers = self.text_model, self.config.num_hidden_layers
        if not 0 <= skip < layers:
            raise ArgumentError(
                f"clip_skip leaves out {skip} layers of {layers}; at least one must stay"
            )
        context, x = model.encoder(model.embeddings(ids), skip)
        last = model.final_layer_norm(x)
        pooled = last[torch.arange(len(ids), device=ids.device), self._end(ids)]
        if self.text_projection is not None:
            pooled = self.text_projection(pooled)
        if norm:
            context = last if skip == 0 else model.final_layer_norm(context)
        return TextStates(model.embeddings.replace_outputs(ids, context), pooled)

    def _end(self, ids: Tensor) -> Tensor:
        """Return the position of the first end-of-text token of each row: (B,N) → (B,)."""
        if self.config.eos_token_id == 2:  # before transformers 4.31, it stands for the largest id
            return ids.argmax(dim=-1)
        return (ids == self.config.eos_token_id).int().argmax(dim=-1)
