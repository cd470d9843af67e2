"""What the recipes share that train a model, or adapters of it, on captioned pictures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.config.settings import within
from ldm.images import image_grid
from ldm.training.checkpointing import checkpoint_blocks
from ldm.training.config import TrainConfig
from ldm.training.finetuning.trained import Trained
from ldm.training.recipes.frozen_base import FrozenBaseOptions, FrozenBaseRecipe

SHOWN = 4  # captions drawn, where no prompts are given


@dataclass(kw_only=True)
class FineTuningOptions(FrozenBaseOptions):
    """What the tables ``[options]`` of these recipes share."""

    # Drawn to show the progress, at fixed seeds; without any, some of the captions.
    prompts: list[str] = field(default_factory=list)
    negative_prompt: str = ""
    columns: int = within("[1, 64]", 4)  # of the sheet of these pictures
    num_inference_steps: int | None = within("[1, inf)", None)  # of them; None: as the base
    guidance_scale: float | None = within("[0, inf)", None)
    gradient_checkpointing: bool = False  # less memory for a third more time


class FineTuningRecipe(FrozenBaseRecipe[Trained]):
    """Learns to denoise pictures given their captions, with what `Trained` has.

    Attributes:
        tuning: the options that all these recipes have.
    """

    def __init__(self, config: TrainConfig, options: FineTuningOptions, what: str) -> None:
        """Load the base; a subclass sets ``model``. Raises as ``FrozenBaseRecipe`` does."""
        self.tuning = options
        super().__init__(config, options, what)
        for network in self.networks.values() if options.gradient_checkpointing else ():
            checkpoint_blocks(network)

    def prepare(self, accelerator: Accelerator) -> None:
        super().prepare(accelerator)
        for part in self.model.parts.values():
            part.train()

    def exact_layers(self, part: str) -> Collection[str]:
        adapters = self.model.adapters.get(part)
        return () if adapters is None else adapters.exact_layers

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        return self.error(model(self.x_t(batch), batch["t"], self.inputs(batch)), batch)

    def inputs(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``Trained.forward`` reads beside x and t: of texts that learn, the ids."""
        if not self.model.trains_text:
            return self.conditions(batch)
        return {"ids": batch["ids"], **self.sizes(batch)}

    def shown(self) -> dict[str, Any]:
        """Return the arguments with which the prompts are drawn."""
        options = self.tuning
        return {
            "num_inference_steps": options.num_inference_steps,
            "guidance_scale": options.guidance_scale,
        }

    def some_captions(self) -> list[str]:
        """Return up to ``SHOWN`` different captions of the data."""
        return list(dict.fromkeys(self.data.captions(self.rows_to_learn)))[:SHOWN]

    @torch.no_grad()
    def evaluate(self, model: Trained) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the prompts, always from the same seeds."""
        options = self.tuning
        prompts = options.prompts or self.some_captions()
        sizes = self.latents.sizes  # from tall to wide
        height, width = sizes[len(sizes) // 2]
        with model.in_place_of(self.model) as pipe:
            drawn = pipe(
                prompts,
                negative_prompt=options.negative_prompt or None,
                height=height,
                width=width,
                clip_skip=options.clip_skip,
                seed=0,
                **self.shown(),
            )
        pictures = cast("list[Image.Image]", drawn.images)
        return image_grid(pictures, columns=min(options.columns, len(pictures))), {}
