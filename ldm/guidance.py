"""Guidance: how the predictions with and without the text become one.

    guided = uncond + s (cond − uncond)         classifier-free (Ho & Salimans 2022, eq. 6)

Each method is one small object with the methods of ``Guidance``. One that changes another method
holds it, so that they compose; ``ldm.classes.guidance`` has a further one:

    Interval(Rescaled(ClassifierFree(7.5), 0.7), 0.3, 5.0)

The denoiser (``ldm.denoiser``) knows no more of a guidance than these methods.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.scheduler import Level


class Guidance:
    """No guidance; each method overrides what it does. Predictions are (B, C, h, w)."""

    def active(self, level: Level) -> bool:
        """Return whether to call ``combine`` at a level, which needs a prediction ``uncond``."""
        return False

    @property
    def needs_bare(self) -> bool:
        """Whether ``combine`` also needs the prediction without the text and without the image."""
        return False

    def with_bare(self, bare: Tensor) -> Guidance:
        """Return this guidance with that prediction, of an editing network, for one step."""
        return self

    def combine(self, cond: Tensor, uncond: Tensor, x: Tensor, level: Level) -> Tensor:
        """Guide the prediction at x with the text by that of the negative prompt, ``uncond``."""
        return cond

    def gradient(self, x: Tensor, level: Level) -> Tensor | None:
        """Compute the gradient of the log-probability to raise, shaped like x; None for none."""
        return None

    def join(self, shifts: Tensor, weights: Tensor) -> Tensor:
        """Compute cond − uncond from the texts that AND joins: Σ wᵢ (condᵢ − uncond).

        shifts: condᵢ − uncond of all texts (N, C, h, w).
        weights: (B, N), 0 for other pictures' texts.
        Source: Liu et al. 2022, "Compositional Visual Generation with Composable Diffusion
        Models", eq. 11.
        """
        return torch.tensordot(weights.to(shifts), shifts, 1)


@dataclass(frozen=True)
class ClassifierFree(Guidance):
    """Classifier-free guidance, with s = w + 1 of the paper; off, at no cost, for s up to 1."""

    scale: float = 7.5

    def __post_init__(self) -> None:
        """Raise ArgumentError for a scale that is not a number."""
        if not math.isfinite(self.scale):
            raise ArgumentError(
                f"guidance_scale is {self.scale}; it must be a number, 1 to 15 as a rule"
            )

    def active(self, level: Level) -> bool:
        return self.scale > 1

    def combine(self, cond: Tensor, uncond: Tensor, x: Tensor, level: Level) -> Tensor:
        return uncond + self.scale * (cond - uncond)


@dataclass(frozen=True)
class ImageAndText(Guidance):
    """Guidance of edits by the image and by the text (Brooks et al. 2023, eq. 3).

        e(∅, ∅) + s_I (e(c_I, ∅) − e(∅, ∅)) + s_T (e(c_I, c_T) − e(c_I, ∅))

    As in diffusers, it is off if the text's scale s_T is up to 1 or the image's s_I less than 1.
    """

    scale: float  # s_T
    image_scale: float  # s_I
    bare: Tensor | None = field(default=None, compare=False, repr=False)  # e(∅, ∅)

    def __post_init__(self) -> None:
        """Raise ArgumentError for a scale that is not a number."""
        for name, value in (("guidance", self.scale), ("image_guidance", self.image_scale)):
            if not math.isfinite(value):
                raise ArgumentError(f"{name}_scale is {value}; it must be a number")

    def active(self, level: Level) -> bool:
        return self.scale > 1 and self.image_scale >= 1

    @property
    def needs_bare(self) -> bool:
        return True

    def with_bare(self, bare: Tensor) -> Guidance:
        return replace(self, bare=bare)

    def combine(self, cond: Tensor, uncond: Tensor, x: Tensor, level: Level) -> Tensor:
        bare = self.bare
        assert bare is not None  # see needs_bare
        return bare + self.image_scale * (uncond - bare) + self.scale * (cond - uncond)


@dataclass(frozen=True)
class Modifier(Guidance):
    """A guidance that changes another one: what it does not override stays the other's."""

    inner: Guidance

    def active(self, level: Level) -> bool:
        return self.inner.active(level)

    @property
    def needs_bare(self) -> bool:
        return self.inner.needs_bare

    def with_bare(self, bare: Tensor) -> Guidance:
        return replace(self, inner=self.inner.with_bare(bare))

    def combine(self, cond: Tensor, uncond: Tensor, x: Tensor, level: Level) -> Tensor:
        return self.inner.combine(cond, uncond, x, level)

    def gradient(self, x: Tensor, level: Level) -> Tensor | None:
        return self.inner.gradient(x, level)

    def join(self, shifts: Tensor, weights: Tensor) -> Tensor:
        return self.inner.join(shifts, weights)


@dataclass(frozen=True)
class Rescaled(Modifier):
    """Take back a share φ of the contrast that guidance adds (Lin et al. 2023, eq. 15 and 16).

    The standard deviation of a picture's prediction goes towards that with the text alone.
    """

    rescale: float

    def __post_init__(self) -> None:
        """Raise ArgumentError for a φ outside [0, 1]."""
        if not 0 <= self.rescale <= 1:
            raise ArgumentError(
                f"guidance_rescale is {self.rescale}; it must be in [0, 1]: 0 is off, 0.7 is usual"
            )

    def combine(self, cond: Tensor, uncond: Tensor, x: Tensor, level: Level) -> Tensor:
        guided = self.inner.combine(cond, uncond, x, level)
        dims = tuple(range(1, cond.ndim))
        factor = cond.std(dims, keepdim=True) / guided.std(dims, keepdim=True)
        return self.rescale * factor * guided + (1 - self.rescale) * guided


@dataclass(frozen=True)
class Interval(Modifier):
    """Guide only where low < σ/α ≤ high (Kynkäänniemi et al. 2024, eq. 5)."""

    low: float
    high: float

    def __post_init__(self) -> None:
        """Raise ArgumentError for levels in the wrong order."""
        if not 0 <= self.low < self.high:
            raise ArgumentError(
                f"guidance_interval is {self.low} to {self.high}; it must be two levels of σ/α, "
                "the lower one first, such as 0.3 to 5"
            )

    def active(self, level: Level) -> bool:
        ratio = level.sigma / level.alpha if level.alpha else math.inf
        return self.low < ratio <= self.high and self.inner.active(level)


def classifier_free(
    scale: float,
    rescale: float = 0.0,
    interval: tuple[float, float] = (0.0, math.inf),
    image_scale: float | None = None,
) -> Guidance:
    """Compose classifier-free guidance of ``guidance_scale``, ``_rescale`` and ``_interval``.

    image_scale: of an editing network, ``image_guidance_scale``.
    Raises ArgumentError for numbers that do not work.
    """
    guidance: Guidance = ClassifierFree(scale)
    if image_scale is not None:
        guidance = ImageAndText(scale, image_scale)
    if rescale:  # at 0, rescaling would only round
        guidance = Rescaled(guidance, rescale)
    low, high = interval
    return Interval(guidance, low, high)
