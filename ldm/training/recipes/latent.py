"""Train the U-Net on cached latents of captioned pictures (Rombach et al. 2022, eq. 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import load_component
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig, UNetConfig
from ldm.config.generation import Defaults
from ldm.config.settings import read_table
from ldm.fast import adapt_to_cpu
from ldm.images import image_grid
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.text.conditioning import TextModel
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.config import TrainConfig
from ldm.training.recipes.captioned import CaptionedRecipe
from ldm.training.recipes.captioned_options import CaptionedOptions
from ldm.training.warm_start import new_unet
from ldm.unet import UNet
from ldm.vae import AutoencoderKL


@dataclass(kw_only=True)
class LatentOptions(CaptionedOptions):
    """The table ``[options]``."""

    vae: str  # folder of the finished one
    text_encoder: str  # folder of the finished one
    scheduler: dict[str, Any]  # as in scheduler_config.json; ``rescale_betas_zero_snr`` makes the
    # last level pure noise (Lin et al. 2024, algorithm 1)
    prompts: list[str]  # what to draw to show the progress
    defaults: dict[str, Any] = field(default_factory=dict)  # as in generation_config.json


class LatentRecipe(CaptionedRecipe[UNet]):
    """Learns to denoise the latents of pictures, given their captions.

    Raises ArgumentError for options that do not go together.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(LatentOptions, config.options, "options.")
        vae = adapt_to_cpu(load_component(AutoencoderKL, Path(options.vae), torch.float32))
        encoder = load_component(CLIPTextEncoder, Path(options.text_encoder), torch.float32)
        tokenizer = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
        scheduler = DDPMScheduler(SchedulerConfig.from_dict(options.scheduler, "options.scheduler"))
        unet = UNetConfig.from_dict(config.model)
        super().__init__(config, options, vae, [TextModel(tokenizer, encoder)], scheduler, unet)
        self.model = new_unet(unet, config.start)

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        conditions = self.conditions(batch)
        return self.error(model(self.x_t(batch), batch["t"], **conditions), batch)

    def evaluate(self, model: UNet) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the prompts, always from the same seeds."""
        output = self.pipeline(model)(self.options.prompts, seed=0)
        return image_grid(cast("list[Image.Image]", output.images), columns=8), {}

    def save(self, model: UNet, folder: Path) -> None:
        """Write a whole pipeline: ``ldm-generate --model`` takes the run's folder."""
        self.pipeline(model).save_pretrained(folder, torch.float16)

    def pipeline(self, unet: UNet) -> Pipeline:
        defaults = Defaults.from_dict(self.options.defaults, "options.defaults")
        text = self.text_models[0]
        return Pipeline(self.vae, text.encoder, text.tokenizer, unet, self.scheduler, defaults)
