"""Reference-only: self-attention also reads a picture, which lends its style and its things.

    pipe("a cat", reference_image="painting.png", seed=1)

At each step, the picture is noised to the level of the step, and passes through the U-Net with the
same text; what it has at a layer is read by the drawn pictures there. No weights are trained.

Source: Zhang 2023, "reference-only", of the web UI's extension Mikubill/sd-webui-controlnet
(discussion 1236), as diffusers' community pipelines have it; no paper describes it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ldm.denoiser import UNetCall
from ldm.fast.replace import view, with_children, with_hook, with_state_of
from ldm.layers import Attention, KeysValues
from ldm.scheduler import Level
from ldm.techniques.self_attention import (
    Moments,
    adain,
    replace_self_attention,
)
from ldm.unet import ImagePrompt, Residuals, UNet, UNetBlock

EPS = 1e-6  # the least variance of adain


class ReferenceRows:
    """The rows of the present U-Net call: those that are drawn, then as many of the picture.

    Attributes:
        negative: which of the drawn rows have no text, (n,) int64; the fidelity is for them.
        fidelity: in [0, 1], how much of what these rows compute is their own.
    """

    negative: Tensor

    def __init__(self, fidelity: float) -> None:
        self.fidelity = fidelity

    def mix(self, y: Tensor, own: Callable[[Tensor], Tensor]) -> Tensor:
        """Mix what the negative rows are without the reference into y (n, …), in place.

        own: (numbers of rows) → those rows. At fidelity 1, guidance is away from pictures without
        the reference, so that it counts twice.
        """
        if self.fidelity and len(self.negative):
            mine = y[self.negative].lerp(own(self.negative), self.fidelity)
            y = y.index_copy_(0, self.negative, mine)
        return y


class ReferenceAttention(Attention):
    """Self-attention of (2n, N, D), in which drawn rows also read the picture's rows."""

    rows: ReferenceRows

    def forward(
        self, x: Tensor, context: Tensor | None = None, pictures: Sequence[KeysValues] = ()
    ) -> Tensor:
        q, k, v = self.queries_keys_values(x, x)
        (q, q_reference), (k, k_reference), (v, v_reference) = (y.chunk(2) for y in (q, k, v))
        y = self.attend(q, torch.cat([k, k_reference], dim=2), torch.cat([v, v_reference], dim=2))
        y = self.rows.mix(y, lambda rows: self.attend(q[rows], k[rows], v[rows]))
        return self.project(torch.cat([y, self.attend(q_reference, k_reference, v_reference)]))


def moments(x: Tensor) -> Moments:
    """Return the moments over the pixels of (B, C, H, W)."""
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True, correction=0)
    return Moments(mean, variance.clamp(min=EPS).sqrt())


def normalize(rows: ReferenceRows, _: nn.Module, __: Any, x: Tensor) -> Tensor:
    """Give the drawn rows of a layer's output (2n, C, H, W) the moments of the picture's rows.

    A forward hook.
    """
    drawn, reference = x.chunk(2)
    y = adain(drawn, moments(drawn), moments(reference))
    return torch.cat([rows.mix(y, lambda negative: drawn[negative]), reference])


def add_adain(unet: UNet, rows: ReferenceRows) -> UNet:
    """Return a view of a U-Net that normalises the coarser half of its levels, and the middle.

    It does so behind each pair of residual block and attention, as the source does at weight 1.
    """
    hook = partial(normalize, rows)
    down, up = list(unet.down_blocks), list(unet.up_blocks)
    chosen = [block for i, block in enumerate(down) if 2 * (len(down) - i) <= len(down)]
    chosen += [block for i, block in enumerate(up) if 2 * i <= len(up)]

    def exchange(layer: nn.Module) -> nn.Module:
        if layer is unet.mid_block:
            return with_hook(layer, hook)
        if layer in chosen and isinstance(layer, UNetBlock):
            name = "attentions" if len(layer.attentions) else "resnets"
            last = getattr(layer, name)
            hooked = nn.ModuleList(with_hook(each, hook) for each in last)
            return with_children(layer, **{name: hooked})
        return layer

    return view(unet, exchange)


class Reference:
    """The reference picture of one run, for ``ldm.denoiser.Denoiser``."""

    def __init__(self, unet: UNet, pixels: Tensor, fidelity: float, mode: str) -> None:
        """Make a view of the U-Net.

        pixels: (1 or B, 3, H, W) in [-1, 1]. fidelity: see ``ReferenceRows``. mode: "attention",
        "adain" or "attention+adain". Raises ArgumentError for a U-Net without self-attention.
        """
        self.pixels, self.rows = pixels, ReferenceRows(fidelity)
        self.unet = unet
        if "adain" in mode:
            self.unet = add_adain(self.unet, self.rows)
        if "attention" in mode:
            self.unet = replace_self_attention(self.unet, self._make, "reference_image")
        self.x = torch.empty(
            0, dtype=torch.float32, device="cpu"
        )  # the picture at the level of the present step
        self._doubled: tuple[UNetCall, dict[str, Tensor]] | None = None  # inputs of the last call

    def _make(self, layer: Attention) -> ReferenceAttention:
        result = with_state_of(layer, ReferenceAttention)
        result.rows = self.rows
        return result

    def start(self, encode: Callable[[Tensor], Tensor], noise: Callable[[], Tensor]) -> None:
        """Encode the picture, which draws noise, too.

        encode: of pixels to latents (B, C, h, w). noise: draws ε like them, anew at each step.
        """
        self.latents, self.noise = encode(self.pixels), noise

    def begin(self, level: Level) -> None:
        """Noise the picture to a level: α x₀ + σ ε."""
        eps = self.noise().to(self.latents.device)
        self.x = level.alpha * self.latents + level.sigma * eps

    def wrap(self, unet: Callable[..., Tensor], call: UNetCall) -> Callable[..., Tensor]:
        """Return what computes the rows of a call, beside as many of the picture, with ``unet``.

        unet: computes with the view of the U-Net.
        """
        negative = [row for row, text in enumerate(call.texts) if text is None]
        self.rows.negative = torch.tensor(negative, dtype=torch.long, device=call.pictures.device)
        if self._doubled is None or self._doubled[0] is not call:
            # The same tensors at every step: DeepCache and caches of keys recognise them.
            inputs = {name: torch.cat([value, value]) for name, value in call.inputs.items()}
            self._doubled = call, inputs
        doubled = self._doubled[1]

        def compute(
            x: Tensor,
            t: Tensor,
            residuals: Residuals | None = None,
            features: Sequence[Tensor] = (),
            image_prompt: ImagePrompt | None = None,
            **inputs: Tensor,
        ) -> Tensor:
            picture = self.x.to(x)[call.pictures]
            more: dict[str, Any] = {
                name: doubled[name] if name in doubled else torch.cat([value, value])
                for name, value in inputs.items()
            }
            # What steers the drawn rows adds nothing to the picture's.
            if residuals is not None:
                skips, middle = residuals
                more["residuals"] = Residuals(
                    [padded(y) for y in skips], None if middle is None else padded(middle)
                )
            if features:
                more["features"] = [padded(y.expand(len(x), -1, -1, -1)) for y in features]
            if image_prompt:
                more["image_prompt"] = {
                    block: [p._replace(keys=padded(p.keys), values=padded(p.values)) for p in each]
                    for block, each in image_prompt.items()
                }
            every = unet(torch.cat([x, picture]), torch.cat([t, t]), **more)
            return every[: len(x)]

        return compute


def padded(y: Tensor) -> Tensor:
    """Append as many rows of 0."""
    return torch.cat([y, torch.zeros_like(y)])
