"""Classifier guidance: raise the probability that a classifier gives to the wanted class.

Source: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4. By
Bayes' rule the score of a class's pictures is that of all pictures plus a gradient:

    ∇ log p(x | y) = ∇ log p(x) + ∇ log p(y | x)

Most samplers add it to x̂₀ (algorithm 2, ``ldm.samplers.Denoised.guided``); "ddpm" adds it to its
mean (algorithm 1), which is steadier at large scales.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.classes.classifier import Classifier
from ldm.errors import ArgumentError
from ldm.guidance import Guidance, Modifier
from ldm.scheduler import Level


@dataclass(frozen=True)
class ClassifierGuidance(Modifier):
    """Add s ∇ log p(y | x) of a classifier that was trained on noisy pictures.

    Attributes:
        labels: the class of each picture; None for a picture that is not guided.
    """

    classifier: Classifier
    labels: Sequence[int | None]
    scale: float

    def __post_init__(self) -> None:
        """Raise ArgumentError for a scale that is not a number."""
        if not math.isfinite(self.scale):
            raise ArgumentError(
                f"classifier_scale is {self.scale}; it must be a number, 0 (off) to 10 as a rule"
            )

    @property
    def pictures(self) -> list[int]:
        """The numbers of the pictures that are guided."""
        return [i for i, label in enumerate(self.labels) if label is not None] if self.scale else []

    def gradient(self, x: Tensor, level: Level) -> Tensor | None:
        """Compute the gradient at x (B, C, h, w), float32, plus that of the inner guidance."""
        pictures, other = self.pictures, self.inner.gradient(x, level)
        if not pictures:
            return other
        like = next(self.classifier.parameters())
        with torch.inference_mode(False), torch.enable_grad():
            inputs = x.detach()[pictures].requires_grad_()
            t = torch.full((len(inputs),), level.t, dtype=torch.float32, device=x.device)
            logits = self.classifier(inputs.to(like), t).float()
            labels = torch.tensor([self.labels[i] for i in pictures], device=x.device)[:, None]
            chosen = logits.log_softmax(dim=1).gather(1, labels).sum()
            (gradient,) = torch.autograd.grad(chosen, inputs)
        whole = torch.zeros_like(x)
        whole[pictures] = self.scale * gradient
        return whole if other is None else whole + other


def with_classifier(
    guidance: Guidance,
    classifier: Classifier | None,
    labels: Sequence[int | None],
    scale: float | None,
    default: float,
    size: tuple[int, int],
) -> Guidance:
    """Add the guidance by a model's classifier, if it has one; ``default`` is for scale None.

    size: (height, width) to draw.
    Raises ArgumentError for a scale without a classifier or without a class, and for a size other
    than the classifier's.
    """
    if classifier is None:
        if scale:
            raise ArgumentError(
                f"classifier_scale is {scale}, but this model has no classifier; leave it out"
            )
        return guidance
    if scale and None in labels:
        raise ArgumentError(
            f"classifier_scale is {scale}, but a prompt is empty; give a class to push towards"
        )
    side = classifier.config.sample_size
    guided = ClassifierGuidance(guidance, classifier, labels, default if scale is None else scale)
    if guided.pictures and size != (side, side):
        raise ArgumentError(
            f"the size is {size[1]}x{size[0]}, but the classifier knows {side}x{side} only; draw "
            "that, or set classifier_scale to 0"
        )
    return guided
