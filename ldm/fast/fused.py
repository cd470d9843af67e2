"""Self-attention whose queries, keys and values are one product instead of three: on CUDA.

The three weights stay what they are, parameters of their own layers; they become rows of one matrix
in memory. So whatever changes them there changes the one product, too, and where one of them has
moved elsewhere, such as for as long as a LoRA is used, the three are used as before.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.fast.attention import CachedAttention
from ldm.fast.replace import replace_children
from ldm.layers import Attention


class FusedAttention(CachedAttention):
    """``CachedAttention`` with the weights of Q, K and V in one matrix, if they read one input."""

    together: Tensor | None = None  # (3D, D): the weights of to_q, to_k and to_v

    def queries_keys_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``MultiHeadAttention``."""
        if context is not x or not self.are_together():
            return super().queries_keys_values(x, context)
        assert self.together is not None
        parts = F.linear(x, self.together).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))  # (B,H,N,d), no copies
        return q, k, v

    def are_together(self) -> bool:
        """Whether the three weights are the matrix, and nothing else reads their layers' calls."""
        if self.together is None or torch.is_grad_enabled():  # gradients are the layers'
            return False
        layers = (self.to_q, self.to_k, self.to_v)
        rows, step = self.together, self.together.nbytes // 3
        return all(
            type(layer) is nn.Linear
            and layer.weight.data_ptr() == rows.data_ptr() + i * step
            and layer.weight.shape == (len(rows) // 3, rows.shape[1])
            and not (layer._forward_hooks or layer._forward_pre_hooks)
            for i, layer in enumerate(layers)
        )

    def __getstate__(self) -> dict[str, object]:
        """Copy without the matrix, as the weights of a copy lie elsewhere."""
        return {name: value for name, value in super().__getstate__().items() if name != "together"}


def put_together(attention: FusedAttention) -> None:
    """Move the weights into one matrix, if the three layers read inputs of one width."""
    layers = (attention.to_q, attention.to_k, attention.to_v)
    weights = [layer.weight for layer in layers]
    alike = all(w.shape == weights[0].shape and w.dtype == weights[0].dtype for w in weights)
    if not alike or any(layer.bias is not None for layer in layers):
        return
    attention.together = torch.cat([weight.detach() for weight in weights])
    for weight, rows in zip(weights, attention.together.chunk(3), strict=True):
        weight.data = rows


def fuse_attention(model: nn.Module) -> None:
    """Replace the attentions of a model by fused ones; ``slow_down`` gives the plain ones back."""
    replace_children(
        model, lambda layer: FusedAttention.of(layer) if type(layer) is Attention else layer
    )
    for module in model.modules():
        if isinstance(module, FusedAttention) and module.together is None:
            put_together(module)
