"""Linear layers in 8-bit floating point, weights and activations: on Ada and Hopper. Not exact.

x ≈ s q with q in float8_e4m3fn, whose largest number is 448 (Micikevicius et al. 2022, "FP8 formats
for deep learning"): weights have a scale s for each row of outputs, activations one for each token
at this call, so that a picture does not depend on its neighbours in the batch. The product of two
such matrices is scaled on its way to memory (``torch._scaled_mm``).

Only the linear layers that transformer blocks and their projections apply to pixels, where both
widths are multiples of 16, as the kernels want, and at least ``LEAST``. The text's keys and values
are computed once a run; they stay exact, as the convolutions and the text encoders do. The plain
weights stay beside their 8 bits, so that LoRAs change them and taking the mode off gives them back.
"""

from __future__ import annotations

import functools
import logging
from typing import Any, NamedTuple, TypeVar, cast

import torch
from torch import Tensor, nn

from ldm.errors import ArgumentError
from ldm.fast import onednn
from ldm.fast.cache import READ, marks, same_marks
from ldm.fast.fused import FusedAttention
from ldm.fast.replace import Replacement
from ldm.layers import GEGLU, SpatialTransformer, TransformerBlock

L = TypeVar("L", bound=nn.Module)
_logger = logging.getLogger(__name__)

CAPABILITY = (8, 9)  # compute capability: Ada; Hopper has 9.0
LARGEST = 448.0  # of float8_e4m3fn; what is larger would be NaN
MULTIPLE = 16  # of both widths
COMPUTED = ("in_8_bits", "cached", "together")  # from the weights
LEAST = 192  # of the smaller width: for narrow layers the rounding outweighs the product


class Rounded(NamedTuple):
    """A matrix of 8 bits: x[i] ≈ scales[i] q[i]."""

    q: Tensor  # (rows, columns), float8_e4m3fn
    scales: Tensor  # (rows, 1), float32


def rounded(x: Tensor) -> Rounded:
    """Round a matrix (rows, columns), each row by its largest value."""
    x = x.contiguous()  # the kernels want it so
    largest = x.abs().amax(1, keepdim=True).float()
    scales = (largest / LARGEST).clamp(min=1e-12)
    return Rounded((x * (1 / scales)).clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn), scales)


class Weight:
    """Weights of 8 bits, those of several layers one below the other."""

    def __init__(self, *layers: nn.Linear) -> None:
        self._round(layers)

    def _round(self, layers: tuple[nn.Linear, ...]) -> Rounded:
        rows = [rounded(layer.weight.detach()) for layer in layers]
        self.marks = [marks(layer) for layer in layers]
        q, scales = (torch.cat(parts) for parts in zip(*rows, strict=True))
        self.values = Rounded(q, scales)
        return self.values

    def are_of(self, *layers: nn.Linear) -> bool:
        """Whether the layers' weights are those that were rounded."""
        return all(
            same_marks(known, marks(layer)) for known, layer in zip(self.marks, layers, strict=True)
        )

    def renew(self, owner: Any) -> None:
        """Round again where the numbers lie, if the weights have changed in place."""
        layers = owner.rounded_layers()
        if not self.are_of(*layers):
            old = self.values
            for there, new in zip(old, self._round(layers), strict=True):
                there.copy_(new)
            self.values = old


class Rounding:
    """Base of layers that keep their weights in 8 bits, too; copies leave these out."""

    in_8_bits: Weight | None = None

    def __getstate__(self) -> dict[str, object]:
        return {name: value for name, value in vars(self).items() if name not in COMPUTED}

    def rounded_layers(self) -> tuple[nn.Linear, ...]:
        """Return the layers whose weights are kept in 8 bits."""
        raise NotImplementedError

    def product(self, x: Tensor) -> Tensor:
        """Compute x Wᵀ of x (…, in), with the rows of all layers."""
        layers, weight = self.rounded_layers(), self.in_8_bits
        if weight is None or not weight.are_of(*layers):
            with torch.inference_mode(False), torch.no_grad():
                weight = self.in_8_bits = Weight(*layers)
        read = READ.get()
        if read is not None:
            read.append((self, weight))
        tokens = rounded(x.reshape(-1, x.shape[-1]))
        y = onednn.fp8_product(*tokens, *weight.values, x.dtype)
        return y.view(*x.shape[:-1], y.shape[-1])


class Fp8Linear(Rounding, Replacement, nn.Linear):
    """``nn.Linear`` in 8 bits."""

    def rounded_layers(self) -> tuple[nn.Linear, ...]:
        return (self,)

    def forward(self, x: Tensor) -> Tensor:
        if not usable(x):
            return super().forward(x)
        y = self.product(x)
        return y if self.bias is None else y.add_(self.bias)


class Fp8Attention(Rounding, FusedAttention):
    """``FusedAttention`` whose queries, keys and values of one input are one product in 8 bits."""

    def rounded_layers(self) -> tuple[nn.Linear, ...]:
        return self.to_q, self.to_k, self.to_v

    def queries_keys_values(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See ``MultiHeadAttention``."""
        if context is not x or not usable(x) or any(map(is_watched, self.rounded_layers())):
            return super().queries_keys_values(x, context)
        parts = self.product(x).unflatten(-1, (3, self.heads, -1))
        q, k, v = (part.transpose(1, 2) for part in parts.unbind(2))
        return q, k, v


def usable(x: Tensor) -> bool:
    """Whether x may be rounded: not where gradients or autocast are wanted."""
    return not (torch.is_grad_enabled() or torch.is_autocast_enabled(x.device.type))


def is_watched(layer: nn.Linear) -> bool:
    """Whether something else reads a layer's calls, or computes them otherwise."""
    return type(layer) is not nn.Linear or bool(layer._forward_hooks or layer._forward_pre_hooks)


def fits(layer: nn.Module) -> bool:
    """Whether 8 bits are for a layer."""
    if type(layer) is not nn.Linear:
        return False
    widths = layer.in_features, layer.out_features
    return min(widths) >= LEAST and not any(width % MULTIPLE for width in widths)


def in_fp8(layer: L) -> L:
    """Return a layer in 8 bits, if they are for it."""
    return cast(L, Fp8Linear.of(layer)) if fits(layer) else layer


def quantize(unet: nn.Module) -> None:
    """Make those layers of a U-Net compute in 8 bits; ``slow_down`` gives the plain ones back."""
    for module in list(unet.modules()):
        if isinstance(module, SpatialTransformer):
            module.proj_in, module.proj_out = in_fp8(module.proj_in), in_fp8(module.proj_out)
        elif isinstance(module, TransformerBlock):
            quantize_block(module)


def quantize_block(block: TransformerBlock) -> None:
    """Make a transformer block's layers compute in 8 bits, except those that read the text."""
    gated = block.ff.net[0]
    assert isinstance(gated, GEGLU)
    gated.proj, block.ff.net[2] = in_fp8(gated.proj), in_fp8(block.ff.net[2])
    for attention in (block.attn1, block.attn2):
        attention.to_out[0] = in_fp8(attention.to_out[0])
    layers = (block.attn1.to_q, block.attn1.to_k, block.attn1.to_v)
    if not block.only_cross and all(map(fits, layers)):
        block.attn1 = Fp8Attention.of(block.attn1)
    elif block.only_cross:
        block.attn1.to_q = in_fp8(block.attn1.to_q)
    block.attn2.to_q = in_fp8(block.attn2.to_q)


def check_supported(device: torch.device) -> None:
    """Raise ArgumentError for a device that cannot multiply 8-bit floating-point numbers."""
    needed = ".".join(map(str, CAPABILITY))
    what = f"fp8 needs a GPU of compute capability {needed} or more (Ada, Hopper)"
    if device.type != "cuda":
        raise ArgumentError(f"{what}, but the device is {device}; leave it out")
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        name, own = torch.cuda.get_device_name(device), ".".join(map(str, capability))
        raise ArgumentError(f"{what}, but {name} has {own}; leave it out")
    if not supported(device):
        raise ArgumentError(
            "fp8 needs PyTorch's scaled products of 8 bits, which do not work here (--debug or "
            "logging at debug level says why); leave it out"
        )


@functools.cache
def supported(device: torch.device) -> bool:
    """Whether this PyTorch has the private operator for a device, with the right results."""
    ok, problem = False, "other results than in float32"
    try:
        with torch.inference_mode(False), torch.no_grad():
            ok = _right(device)
    except onednn.PROBLEMS as error:
        problem = str(error).splitlines()[0]
    if not ok:
        _logger.debug("8-bit floating point cannot be used here: %s", problem)
    return ok


def _right(device: torch.device) -> bool:
    """Try the operator on small matrices."""
    generator = torch.Generator().manual_seed(0)
    x, weight = (
        rounded(torch.randn(s, generator=generator, dtype=torch.float32, device="cpu").to(device))
        for s in ((5, 32), (48, 32))
    )
    want = (x.q.float() * x.scales) @ (weight.q.float() * weight.scales).T
    got = onednn.fp8_product(*x, *weight, torch.float32)
    return bool((got - want).abs().max() < 0.02 * want.abs().max())
