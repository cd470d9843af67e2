"""IP-Adapter: a picture as a prompt, by cross-attentions of its own beside the text's.

Source: Ye et al. 2023, "IP-Adapter: Text compatible image prompt adapter for text-to-image
diffusion models", section 3.2. Each cross-attention's result gets another one added, of the same
queries and of keys and values of the picture's tokens (eq. 5):

    Z = Attention(Q, K, V) + λ Attention(Q, K', V')

    adapter = IPAdapter(IPAdapterConfig.like(unet.config, image_width=1024))
    tokens = adapter(encoder(pixels).image_embeds[:, None])  # one picture for each row
    unet(x, t, context, image_prompt=adapter.prompt(unet, tokens))

Nothing of the U-Net changes. The tokens are the same at every step, so a run computes K' and V'
once. Parameters are named as in the authors' files: ``image_proj.…``, ``ip_adapter.1.to_k_ip.…``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from einops import rearrange
from torch import Tensor, nn

from ldm.config import IPAdapterConfig
from ldm.control.image_projection import PROJECTIONS
from ldm.layers import KeysValues, TransformerBlock
from ldm.unet import ImagePrompt, UNet


class ImageKeysValues(nn.Module):
    """W'_K and W'_V of one cross-attention (eq. 4): tokens (…,D) → keys and values (…,width)."""

    def __init__(self, context_dim: int, width: int) -> None:
        super().__init__()
        self.to_k_ip = nn.Linear(context_dim, width, bias=False)
        self.to_v_ip = nn.Linear(context_dim, width, bias=False)

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        return self.to_k_ip(tokens), self.to_v_ip(tokens)


class IPAdapter(nn.Module):
    """An IP-Adapter: by ``IPAdapterConfig``. Its state is what a file of the authors' holds."""

    config_class = IPAdapterConfig
    weight_stem = "ip_adapter"

    def __init__(self, config: IPAdapterConfig) -> None:
        super().__init__()
        self.config = config
        self.image_proj = PROJECTIONS[config.kind](config)
        # Files count all attentions of a U-Net, and self-attentions are the even ones.
        self.ip_adapter = nn.ModuleDict(
            {
                str(2 * i + 1): ImageKeysValues(config.cross_attention_dim, width)
                for i, width in enumerate(config.layer_widths)
            }
        )

    @classmethod
    def from_unet(cls, unet: UNet, **values: Any) -> IPAdapter:
        """Make an untrained one: its W'_K and W'_V are the U-Net's W_K and W_V of the text.

        values: fields of its configuration, such as ``image_width``. Source: the authors' code.
        """
        adapter = cls(IPAdapterConfig.like(unet.config, **values))
        layers = cast(Sequence[ImageKeysValues], adapter.ip_adapter.values())
        for block, layer in zip(transformer_blocks(unet), layers, strict=True):
            layer.to_k_ip.load_state_dict(block.attn2.to_k.state_dict())
            layer.to_v_ip.load_state_dict(block.attn2.to_v.state_dict())
        return adapter

    def forward(self, states: Tensor) -> Tensor:
        """Return the tokens (B,n,N,D) of n pictures for each of B rows.

        states: of CLIP's vision encoder: (B,n,P) embeddings for "base", else (B,n,N',P), of all
        patches.
        """
        flat = states.flatten(0, 1)
        return self.image_proj(flat).unflatten(0, states.shape[:2])

    def prompt(
        self,
        unet: UNet,
        tokens: Tensor,
        scales: float | Sequence[float] | Mapping[nn.Module, float] = 1.0,
        masks: Mapping[nn.Module, Tensor] | None = None,
    ) -> ImagePrompt:
        """Return what a U-Net's blocks read of tokens (B,n,N,D): its ``image_prompt``.

        All of a row's pictures are read at once, unless they have masks.
        scales: λ, of all blocks, or by transformer block; of pictures with masks, also for each.
            A block at 0 computes nothing.
        masks: by transformer block, (n, pixels of its feature map) in [0, 1].
        """
        found: dict[nn.Module, Sequence[KeysValues]] = {}
        layers = cast(Sequence[ImageKeysValues], self.ip_adapter.values())
        for block, layer in zip(transformer_blocks(unet), layers, strict=True):
            scale = scales.get(block, 0.0) if isinstance(scales, Mapping) else scales
            each = list(scale) if isinstance(scale, Sequence) else [scale] * tokens.shape[1]
            if any(each):
                keys, values = layer(tokens)
                mask = None if masks is None else masks[block]
                found[block] = split_heads(keys, values, each, mask, block.attn2.heads)
        return found


def split_heads(
    keys: Tensor, values: Tensor, scales: Sequence[float], masks: Tensor | None, heads: int
) -> list[KeysValues]:
    """Turn keys and values (B,n,N,width) of n pictures into what ``Attention`` reads."""
    if masks is None:
        values = values if set(scales) == {1} else values * values.new_tensor(scales)[:, None, None]
        pair = (rearrange(y, "b i n (h d) -> b h (i n) d", h=heads) for y in (keys, values))
        return [KeysValues(*pair)]
    found = []
    for i, scale in enumerate(scales):
        if scale:
            k, v = (rearrange(y[:, i], "b n (h d) -> b h n d", h=heads) for y in (keys, values))
            found.append(KeysValues(k, v * scale, masks[i][None, :, None].to(v)))
    return found


def transformer_blocks(unet: UNet) -> list[TransformerBlock]:
    """Return the blocks with cross-attention as files count them: down, up, middle."""
    parts = [unet.down_blocks, unet.up_blocks, *filter(None, [unet.mid_block])]
    every = (module for part in parts for module in part.modules())
    return [module for module in every if isinstance(module, TransformerBlock)]


def merged(prompts: Sequence[ImagePrompt]) -> ImagePrompt:
    """Return the prompts of several adapters as one: what they give is added up."""
    found: dict[nn.Module, list[KeysValues]] = {}
    for prompt in prompts:
        for block, pictures in prompt.items():
            found.setdefault(block, []).extend(pictures)
    return found
