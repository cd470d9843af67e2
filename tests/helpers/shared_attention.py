"""Reference-only and style-aligned drawing by their formulas, inside of diffusers' pipelines."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.images.files import stretch, to_tensor

diffusers = pytest.importorskip("diffusers")


def attend(attn: Any, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q kᵀ/√d) v, joined and projected; of (b, heads, n, d)."""
    weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(-1)
    y = (weights @ v).transpose(1, 2).flatten(2)
    return attn.to_out[0](y)


def heads(attn: Any, y: Tensor) -> Tensor:
    return y.unflatten(2, (attn.heads, -1)).transpose(1, 2)


class TwoPasses:
    """Each call of a U-Net is two: the picture's, which is remembered, and that which reads it."""

    def __init__(
        self, pipe: Any, pictures: Any, size: tuple[int, int], generators: Any, fidelity: float,
        mode: str, guided: bool,
    ) -> None:  # fmt: skip
        self.pipe, self.generators, self.fidelity = pipe, generators, fidelity
        self.mode, self.guided = mode, guided
        self.pixels = to_tensor([stretch(picture, *size) for picture in pictures])
        self.latents: Tensor | None = None
        self.writes = True
        self.bank: dict[Any, Tensor] = {}

    def mix(self, own: Tensor, read: Tensor) -> Tensor:
        """The rows without a text keep a part of their own; they are the first half."""
        half = len(own) // 2 if self.guided else 0
        f = self.fidelity
        return torch.cat([f * own[:half] + (1 - f) * read[:half], read[half:]])

    def processor(self, name: str) -> Any:
        def process(attn: Any, x: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
            context = x if encoder_hidden_states is None else encoder_hidden_states
            q, k, v = (
                heads(attn, y) for y in (attn.to_q(x), attn.to_k(context), attn.to_v(context))
            )
            own = attend(attn, q, k, v)
            if "attn1" not in name or "attention" not in self.mode:
                return own
            if self.writes:
                self.bank[name] = x
                return own
            both = torch.cat([x, self.bank[name]], dim=1)
            k, v = heads(attn, attn.to_k(both)), heads(attn, attn.to_v(both))
            return self.mix(own, attend(attn, q, k, v))

        return process

    def hook(self, module: Any, _: Any, output: Any) -> Any:
        x = output[0] if isinstance(output, tuple) else output
        if self.writes:
            self.bank[module] = x
            return None
        stats = [(y.mean((2, 3), keepdim=True), y.var((2, 3), keepdim=True, correction=0))
                 for y in (x, self.bank[module])]  # fmt: skip
        (m, s), (mean, variance) = stats
        floor = torch.tensor(1e-6)
        y = (x - m) / s.maximum(floor) ** 0.5 * variance.maximum(floor) ** 0.5 + mean
        y = self.mix(x, y)
        return (y,) if isinstance(output, tuple) else y

    def hooked(self) -> Iterator[Any]:
        unet = self.pipe.unet
        if "adain" not in self.mode:
            return
        if unet.mid_block is not None:
            yield unet.mid_block
        for blocks, is_up in ((unet.down_blocks, False), (unet.up_blocks, True)):
            for i, block in enumerate(blocks):
                weight = i / len(blocks) if is_up else 1 - i / len(blocks)
                if 2 * weight <= 1:
                    yield from getattr(block, "attentions", None) or block.resnets

    def __call__(self, x: Tensor, t: Any, **inputs: Any) -> Any:
        draw = diffusers.utils.torch_utils.randn_tensor
        vae, count = self.pipe.vae, len(x) // (2 if self.guided else 1)
        shape = (count, *x.shape[1:])
        if self.latents is None:
            posterior = vae.encode(self.pixels).latent_dist
            eps = draw(shape, generator=self.generators)
            self.latents = vae.config.scaling_factor * (posterior.mean + posterior.std * eps)
        alpha = self.pipe.scheduler.alphas_cumprod[int(t)]
        noise = draw(shape, generator=self.generators)
        reference = alpha**0.5 * self.latents + (1 - alpha) ** 0.5 * noise
        self.writes = True
        self.forward(torch.cat([reference] * (len(x) // count)), t, **inputs)
        self.writes = False
        return self.forward(x, t, **inputs)

    @contextmanager
    def installed(self) -> Iterator[None]:
        unet = self.pipe.unet
        before, self.forward = dict(unet.attn_processors), unet.forward
        unet.set_attn_processor({name: self.processor(name) for name in before})
        handles = [module.register_forward_hook(self.hook) for module in self.hooked()]
        unet.forward = self
        try:
            yield
        finally:
            del unet.forward
            unet.set_attn_processor(before)
            for handle in handles:
                handle.remove()


def align(attn: Any, x: Tensor, encoder_hidden_states: Any = None, **_: Any) -> Tensor:
    """Hertz et al. 2024, eq. 3 to 5: what a processor of self-attention does, of one half."""
    q, k, v = (heads(attn, layer(x)) for layer in (attn.to_q, attn.to_k, attn.to_v))

    def normalized(y: Tensor) -> Tensor:
        mean, std = y.mean(2, keepdim=True), (y.var(2, keepdim=True) + 1e-5) ** 0.5
        return (y - mean) / std * std[:1] + mean[:1]

    q, k = normalized(q), normalized(k)
    k, v = (torch.cat([y, y[:1].expand_as(y)], dim=2) for y in (k, v))
    return attend(attn, q, k, v)


@contextmanager
def aligned(unet: Any, halves: int) -> Iterator[None]:
    """Let the rows of each of ``halves`` parts of a batch share the self-attention of its first."""

    def process(attn: Any, x: Tensor, **_: Any) -> Tensor:
        return torch.cat([align(attn, part) for part in x.chunk(halves)])

    before = dict(unet.attn_processors)
    own = {name: process if "attn1" in name else before[name] for name in before}
    unet.set_attn_processor(own)
    try:
        yield
    finally:
        unet.set_attn_processor(before)
