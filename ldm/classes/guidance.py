"""Classifier guidance: pictures are pushed to where a classifier sees the class that is wanted.

Source: Dhariwal & Nichol 2021, "Diffusion Models Beat GANs on Image Synthesis", section 4. By
Bayes' rule the score of a class's pictures is that of all pictures and a gradient more:

    ∇ log p(x | y) = ∇ log p(x) + ∇ log p(y | x)

``Denoiser`` adds it to x̂₀ (algorithm 2), and the sampler "ddpm" to its mean (algorithm 1), which
at great scales is the steadier.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.classes.classifier import Classifier
from ldm.errors import ArgumentError
from ldm.scheduler import Level


class ClassifierGuidance:
    """s ∇ log p(y | x) of a classifier that was trained on noisy pictures."""

    def __init__(self, classifier: Classifier, labels: Sequence[int | None], scale: float) -> None:
        """labels: of each picture; None is not guided.

        Raises ArgumentError for a scale that is no number.
        """
        if not math.isfinite(scale):
            raise ArgumentError(
                f"classifier_scale is {scale}; it must be a number, 0 (off) to 10 as a rule"
            )
        self.classifier, self.scale = classifier, scale
        self.pictures = [i for i, label in enumerate(labels) if label is not None]
        self.labels = [label for label in labels if label is not None]

    @property
    def active(self) -> bool:
        """Whether a picture is guided."""
        return bool(self.scale and self.labels)

    def __call__(self, x: Tensor, level: Level) -> Tensor | None:
        """The gradient at x (B, C, h, w), float32, like x; None where there is none."""
        if not self.active:
            return None
        like = next(self.classifier.parameters())
        with torch.inference_mode(False), torch.enable_grad():
            inputs = x.detach()[self.pictures].requires_grad_()
            t = torch.full((len(inputs),), level.t, device=x.device)
            logits = self.classifier(inputs.to(like), t).float()
            labels = torch.tensor(self.labels, device=x.device)[:, None]
            chosen = logits.log_softmax(dim=1).gather(1, labels).sum()
            (gradient,) = torch.autograd.grad(chosen, inputs)
        whole = torch.zeros_like(x)
        whole[self.pictures] = self.scale * gradient
        return whole


def guided_by(
    classifier: Classifier | None,
    labels: Sequence[int | None],
    scale: float | None,
    default: float,
    size: tuple[int, int],
) -> ClassifierGuidance | None:
    """The guidance by a model's classifier, where there is one; ``default`` is for scale None.

    size: (height, width) to draw.
    Raises ArgumentError for a scale without a classifier or without a class, and for another size
    than the classifier's.
    """
    if classifier is None:
        if scale:
            raise ArgumentError(
                f"classifier_scale is {scale}, but this model has no classifier; leave it out"
            )
        return None
    if scale and None in labels:
        raise ArgumentError(
            f"classifier_scale is {scale}, but a prompt is empty; give a class to push towards"
        )
    side = classifier.config.sample_size
    guided = ClassifierGuidance(classifier, labels, default if scale is None else scale)
    if guided.active and size != (side, side):
        raise ArgumentError(
            f"the size is {size[1]}x{size[0]}, but the classifier knows {side}x{side} only; draw "
            "that, or set classifier_scale to 0"
        )
    return guided
