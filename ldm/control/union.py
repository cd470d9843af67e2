"""ControlNet-Union: one ControlNet for pictures of several kinds, several of them at once.

Source: xinsir/controlnet-union-sdxl-1.0 and its "promax" (no paper), as diffusers'
``ControlNetUnionModel`` has it, whose names the modules have. Beside the time, it embeds which
kinds are given; and the features of each picture are shifted by a vector α, computed from their
mean over all pixels and from a learned vector of the kind:

    tokenᵢ = mean(featuresᵢ) + task_embedding[kindᵢ]
    αᵢ = spatial_ch_projs(transformer(tokenᵢ))
    hint = Σᵢ sᵢ (featuresᵢ + αᵢ)

The published transformer attends across the pictures of a batch, not across the tokens. All rows
of one picture are equal, so that each attends to itself: to its value alone. It is computed so
here, so that a picture is the same alone and in a batch, and the hint is computed once a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config.controlnet_union import ControlNetUnionConfig
from ldm.control.controlnet import ControlNet
from ldm.layers import TimestepEmbedding, timestep_embedding
from ldm.unet import required


class ValueAttention(nn.Module):
    """Attention of one token to itself: its value, projected: (b, D) → (b, D).

    The parameters are those of ``torch.nn.MultiheadAttention``; a checkpoint has the queries' and
    keys', too.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.in_proj_weight = nn.Parameter(torch.empty(3 * dim, dim))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * dim))
        self.out_proj = nn.Linear(dim, dim)
        nn.init.xavier_uniform_(self.in_proj_weight)

    def forward(self, x: Tensor) -> Tensor:
        dim = x.shape[-1]
        value = F.linear(x, self.in_proj_weight[2 * dim :], self.in_proj_bias[2 * dim :])
        return self.out_proj(value)


class ResidualAttentionMlp(nn.Module):
    """Two layers with CLIP's approximation of GELU: (b, D) → (b, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.c_fc = nn.Linear(dim, 4 * dim)
        self.c_proj = nn.Linear(4 * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c_fc(x)
        return self.c_proj(x * torch.sigmoid(1.702 * x))


class ResidualAttentionBlock(nn.Module):
    """A transformer block of tokens that do not see each other: (b, D) → (b, D)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.attn = ValueAttention(dim)
        self.ln_1 = nn.LayerNorm(dim)
        self.mlp = ResidualAttentionMlp(dim)
        self.ln_2 = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.ln_1(x))
        return x + self.mlp(self.ln_2(x))


class ControlNetUnion(ControlNet):
    """diffusers' ``ControlNetUnionModel``: by ``ControlNetUnionConfig``."""

    config_class = ControlNetUnionConfig
    config: ControlNetUnionConfig

    def __init__(self, config: ControlNetUnionConfig) -> None:
        super().__init__(config)
        assert config.addition_time_embed_dim is not None  # its config refuses that
        width, dim, kinds = (
            config.block_out_channels[0], config.num_trans_channel, config.num_control_type
        )  # fmt: skip
        self.task_embedding = nn.Parameter(dim**0.5 * torch.randn(kinds, dim))
        self.transformer_layes = nn.ModuleList(  # the checkpoints spell it so
            ResidualAttentionBlock(dim) for _ in range(config.num_trans_layer)
        )
        self.spatial_ch_projs = nn.Linear(dim, config.num_proj_channel)
        nn.init.zeros_(self.spatial_ch_projs.weight)
        nn.init.zeros_(self.spatial_ch_projs.bias)
        self.control_add_embedding = TimestepEmbedding(
            config.addition_time_embed_dim * kinds, 4 * width
        )

    def embed_hints(
        self, hints: Sequence[Tensor], modes: Sequence[int], scales: Sequence[float]
    ) -> Tensor:
        """Return the features of several pictures together: (b, width, h, w).

        hints: (1 or b, 3, H, W) each, in [0, 1]; modes: the number of each one's kind; scales:
        factors of them.
        """
        total: Tensor | None = None
        for hint, mode, scale in zip(hints, modes, scales, strict=True):
            features = self.embed_hint(hint)
            token = features.mean(dim=(2, 3)) + self.task_embedding[mode]
            # The factor of the token and of α, as diffusers has it.
            token = token * scale
            for layer in self.transformer_layes:
                token = layer(token)
            alpha = self.spatial_ch_projs(token)[:, :, None, None]
            shifted = scale * (features + alpha)
            total = shifted if total is None else total + shifted
        return required("hints", total)

    def control_type(self, modes: Sequence[int]) -> Tensor:
        """Return which kinds are given: (1, num_control_type), 1 or 0."""
        given = torch.zeros(1, self.config.num_control_type, dtype=torch.float32, device="cpu")
        given[0, list(modes)] = 1
        return given

    def forward(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        hint: Tensor | None = None,
        pooled: Tensor | None = None,
        time_ids: Tensor | None = None,
        class_labels: Tensor | None = None,
        control_type: Tensor | None = None,
    ) -> list[Tensor]:
        """Return what to add, as ``ControlNet.forward``.

        hint: (1 or B, first width, h, w), from ``embed_hints``. control_type: (1,
        num_control_type), 1 for the kinds that are given.
        """
        kinds = required("control_type", control_type)
        dim = self.config.addition_time_embed_dim
        assert dim is not None
        numbers = timestep_embedding(
            kinds.flatten(), dim,
            flip_sin_to_cos=self.config.flip_sin_to_cos, freq_shift=self.config.freq_shift,
        )  # fmt: skip
        added = self.control_add_embedding(numbers.view(len(kinds), -1).to(x.dtype))
        temb = self.embed(t, pooled, time_ids, None, class_labels, dtype=x.dtype, added=added)
        return super().forward(x, t, context, hint, temb=temb)
