"""What the recipes share that train a model, or adapters of it, on captioned pictures."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.config.settings import choice, within
from ldm.errors import ArgumentError
from ldm.images import image_grid
from ldm.training.checkpointing import checkpoint_blocks
from ldm.training.config import TrainConfig
from ldm.training.finetuning.adapters import Adapters
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
    # Of frozen networks; of half precision, as mixed_precision is, they take half the memory.
    base_dtype: str = choice("float32", "bfloat16", "float16")


class FineTuningRecipe(FrozenBaseRecipe[Trained]):
    """Learns to denoise pictures given their captions, with what `Trained` has.

    Attributes:
        tuning: the options that all these recipes have.
        networks: the base's U-Net and text encoders.
    """

    def __init__(self, config: TrainConfig, options: FineTuningOptions, what: str) -> None:
        """Load the base; a subclass sets ``model``. Raises as ``FrozenBaseRecipe`` does."""
        self.tuning = options
        super().__init__(config, options, what)
        check_base_dtype(config, options.base_dtype)
        encoders: list[nn.Module] = [model.encoder for model in self.text_models]
        self.networks = [self.pipe.unet, *encoders]
        for network in self.networks if options.gradient_checkpointing else ():
            checkpoint_blocks(network)

    def prepare(self, accelerator: Accelerator) -> None:
        dtype: torch.dtype = getattr(torch, self.tuning.base_dtype)
        for network in self.networks:
            if not any(parameter.requires_grad for parameter in network.parameters()):
                network.to(dtype)
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


def check_base_dtype(config: TrainConfig, dtype: str) -> None:
    """Raise ArgumentError for a base of half precision that is not computed with in it."""
    needed = {"bfloat16": "bf16", "float16": "fp16"}.get(dtype)
    if needed is not None and config.mixed_precision != needed:
        raise ArgumentError(
            f"options.base_dtype is {dtype!r}, but mixed_precision {config.mixed_precision!r}; set "
            f'mixed_precision = "{needed}", or leave options.base_dtype out'
        )
