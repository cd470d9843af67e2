"""What the recipes share that train a model, or adapters of it, on captioned pictures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.config.settings import within
from ldm.images import image_grid
from ldm.training.config import TrainConfig
from ldm.training.finetuning.adapters import Adapters
from ldm.training.finetuning.trained import Trained
from ldm.training.recipes.frozen_base import FrozenBaseOptions, FrozenBaseRecipe


@dataclass(kw_only=True)
class FineTuningOptions(FrozenBaseOptions):
    """What the tables ``[options]`` of these recipes share."""

    prompts: list[str] = field(default_factory=list)  # drawn to show the progress, at fixed seeds
    negative_prompt: str = ""
    columns: int = within("[1, 64]", 4)  # of the sheet of these pictures
    num_inference_steps: int | None = within("[1, inf)", None)  # of them; None: as the base
    guidance_scale: float | None = within("[0, inf)", None)


class FineTuningRecipe(FrozenBaseRecipe[Trained]):
    """Learns to denoise pictures given their captions, with what `Trained` has.

    Attributes:
        tuning: the options that all these recipes have.
    """

    def __init__(self, config: TrainConfig, options: FineTuningOptions, what: str) -> None:
        """Load the base; a subclass sets ``model``. Raises as ``FrozenBaseRecipe`` does."""
        self.tuning = options
        super().__init__(config, options, what)

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        for part in self.model.parts.values():
            part.train()

    def exact_layers(self) -> Collection[str]:
        """Return the paths of layers whose changes are added to the weights.

        In bfloat16 the first small changes would be lost.
        """
        adapters = dict(self.model.parts.items()).get("unet")
        if not isinstance(adapters, Adapters):
            return ()
        return {path for path, adapter in adapters.items() if not adapter.low_rank}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.error(model(self.x_t(batch), batch["t"], self.inputs(batch)), batch)

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``Trained.forward`` reads beside x and t: of texts that learn, the ids."""
        if not self.model.trains_text:
            return self.conditions(batch)
        return {"ids": batch["ids"], **self.sizes(batch)}

    @torch.no_grad()
    def evaluate(self, model: Trained) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the prompts, always from the same seeds."""
        options = self.tuning
        if not options.prompts:
            return None, {}
        sizes = self.latents.sizes  # from tall to wide
        height, width = sizes[len(sizes) // 2]
        with model.in_place_of(self.model) as pipe:
            drawn = pipe(
                options.prompts,
                negative_prompt=options.negative_prompt or None,
                height=height,
                width=width,
                clip_skip=options.clip_skip,
                num_inference_steps=options.num_inference_steps,
                guidance_scale=options.guidance_scale,
                seed=0,
            )
        pictures = cast("list[Image.Image]", drawn.images)
        return image_grid(pictures, columns=min(options.columns, len(pictures))), {}
