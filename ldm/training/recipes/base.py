"""What every recipe gives the training loop: a model, batches, a loss, and what is saved."""

from __future__ import annotations

from abc import ABC, abstractmethod
from pathlib import Path
from typing import Any, Generic, TypeVar

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

M = TypeVar("M", bound=nn.Module)


class Recipe(ABC, Generic[M]):
    """What differs between trainings: data, model and objective.

    Attributes:
        model: all that is trained; its forward is what runs on many processes.
        data: the data set, with the indices ``train`` and ``held_out`` of its rows.
    """

    model: M
    data: Any

    @property
    def frozen(self) -> list[nn.Module]:
        """Networks that are used but do not learn, as they lie in memory. By default none."""
        return []

    @abstractmethod
    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the whole batch of a step, over all processes, on the CPU: tensors of B rows."""

    @abstractmethod
    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the scalar to minimise, a mean over the rows, and scalars to log."""

    @abstractmethod
    def save(self, model: M, folder: Path) -> None:
        """Write the averaged model as a diffusers folder."""

    def prepare(self, accelerator: Accelerator) -> None:
        """Compute what the first step needs, such as cached latents. By default nothing."""

    def follow(self, averaged: M) -> None:
        """Take the moving average of the model, which a recipe may learn from. By default nothing.

        It changes as the training goes on; of a sharded model it is not up to date.
        """

    def after_backward(self, step: int) -> None:
        """Change the gradients of a step, over all of its batch. By default nothing."""

    def evaluate(self, model: M) -> tuple[Image.Image | None, dict[str, float]]:
        """Return a picture of what the averaged model does, and figures on held-out data."""
        return None, {}

    def figures(self, model: M, folder: Path) -> None:
        """Draw more pictures of the averaged model into a folder. By default none."""

    def example(self, count: int) -> dict[str, Tensor] | None:
        """Return a batch of so many rows without ``prepare``, for ``--dry-run``; None: cannot."""
        return None

    def examples(self) -> tuple[int, int]:
        """Return the numbers of training and held-out rows; 0 if unknown before a stream's end."""
        return len(self.data.train), len(self.data.held_out)
