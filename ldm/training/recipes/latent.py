"""Train the U-Net on cached latents of captioned pictures (Rombach et al. 2022, eq. 3)."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.folder import load_component
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig, UNetConfig
from ldm.config.generation import Defaults
from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.images import image_grid
from ldm.pipeline import Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.batches import draw_times
from ldm.training.config import TrainConfig
from ldm.training.data import Pictures, open_data
from ldm.training.data.buckets import bucket_sizes
from ldm.training.data.crops import Size
from ldm.training.objectives import check_zero_snr, diffusion_weight, simple_error
from ldm.training.recipes.base import Recipe
from ldm.training.recipes.cached_contexts import CachedContexts
from ldm.training.recipes.cached_latents import CachedLatents
from ldm.training.warm_start import new_unet
from ldm.unet import UNet
from ldm.vae import AutoencoderKL


@dataclass
class LatentOptions:
    """The table ``[options]``."""

    vae: str  # folder of the finished one
    text_encoder: str  # folder of the finished one
    scheduler: dict[str, Any]  # as in scheduler_config.json; ``rescale_betas_zero_snr`` makes the
    # last level pure noise (Lin et al. 2024, algorithm 1)
    prompts: list[str]  # what to draw to show the progress
    defaults: dict[str, Any] = field(default_factory=dict)  # as in generation_config.json
    # How the pictures are read (see DataOptions). With ``flip``, latents of the mirrored pictures
    # are kept beside the others.
    data: dict[str, Any] = field(default_factory=dict)
    # {multiple, max_ratio} for batches of several proportions, of about ``data.size``² px each,
    # see bucket_sizes; without it, all pictures are cropped to squares.
    buckets: dict[str, Any] | None = None
    # Whether the text encoder's states of all captions are computed once and kept on the disk, too:
    # 2·77·D bytes each, which a small encoder of width D and a small set of captions are worth.
    keep_contexts: bool = False
    caption_dropout: float = within("[0, 1]", 0.1)  # share of captions made "", for guidance
    # Strength of noise that is one number for each channel of a picture, so that the model learns
    # to change its mean (Guttenberg 2023).
    offset_noise: float = within("[0, inf)", 0.0)
    min_snr_gamma: float | None = within("(0, inf)", None)  # see ``diffusion_weight``
    # Times are drawn more often where shapes are learnt, see ``draw_times``; without
    # ``logit_std``, all equally often.
    logit_mean: float = 0.0
    logit_std: float | None = within("(0, inf)", None)


class LatentRecipe(Recipe[UNet]):
    """Learns to denoise the latents of pictures, given their captions.

    Raises ArgumentError for options that do not go together.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.options = options = read_table(LatentOptions, config.options, "options.")
        self.data = captioned_pictures(config.data, options.data)
        self.vae = adapt_to_cpu(load_component(AutoencoderKL, Path(options.vae), torch.float32))
        self.text_encoder = load_component(
            CLIPTextEncoder, Path(options.text_encoder), torch.float32
        )
        self.tokenizer = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
        self.scheduler = DDPMScheduler(
            SchedulerConfig.from_dict(options.scheduler, "options.scheduler")
        )
        check_zero_snr(self.scheduler, options.min_snr_gamma)
        self.model = new_unet(UNetConfig.from_dict(config.model), config.start)

        multiple = self.vae.config.scale * 2 ** (len(self.model.config.block_out_channels) - 1)
        self.latents = CachedLatents(
            Path(config.output) / "latents",
            self.vae,
            self.data,
            picture_sizes(self.data, options.buckets, multiple),
            flip=self.data.options.flip,
        )

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every picture once, and make the captions tokens."""
        self.latents.prepare(accelerator)
        texts = self.data.captions(torch.arange(len(self.data)))
        captions = sorted({*texts, ""})
        ids = dict(zip(captions, range(len(captions)), strict=True))
        self.tokens = torch.tensor(self.tokenizer(captions), dtype=torch.int32)
        self.caption = torch.tensor([ids[text] for text in texts])
        self.empty = ids[""]
        self.text_encoder.to(accelerator.device)
        if self.options.keep_contexts:
            folder = Path(self.config.output) / "contexts"
            self.contexts = CachedContexts(folder, self.text_encoder, self.tokens)
            self.contexts.prepare(accelerator)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        count = self.config.batch_size
        indices, x0 = self.latents.draw(count, generator)
        caption = self.caption[indices]
        dropped = torch.rand(count, generator=generator) < self.options.caption_dropout
        caption[dropped] = self.empty
        options = self.options
        t = draw_times(self.scheduler, count, generator, options.logit_mean, options.logit_std)
        noise = torch.randn(x0.shape, generator=generator)
        if offset := options.offset_noise:
            noise += offset * torch.randn((*x0.shape[:2], 1, 1), generator=generator)
        batch = {"x0": x0, "noise": noise, "t": t}
        if options.keep_contexts:
            return batch | {"context": self.contexts.of(caption)}
        return batch | {"ids": self.tokens[caption]}

    def example(self, count: int) -> dict[str, Tensor]:
        height, width = (side // self.vae.config.scale for side in self.latents.sizes[0])
        x0 = torch.zeros(count, self.vae.config.latent_channels, height, width)
        batch = {"x0": x0, "noise": x0, "t": torch.zeros(count, dtype=torch.int64)}
        ids = torch.tensor(self.tokenizer([""] * count))
        if self.options.keep_contexts:
            width = self.text_encoder.config.hidden_size
            return batch | {"context": torch.zeros(*ids.shape, width)}
        return batch | {"ids": ids}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        context = batch.get("context")
        if context is None:
            with torch.no_grad():
                context = self.text_encoder(batch["ids"].long()).context
        x_t = self.scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        error = simple_error(self.scheduler, model(x_t, t, context), x0, noise, t)
        weight = diffusion_weight(self.scheduler, t, self.options.min_snr_gamma)
        return (weight * error).mean(), {"mse": error.detach().mean()}

    def evaluate(self, model: UNet) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the prompts, always from the same seeds."""
        output = self.pipeline(model)(self.options.prompts, seed=0)
        return image_grid(cast("list[Image.Image]", output.images), columns=8), {}

    def save(self, model: UNet, folder: Path) -> None:
        """Write a whole pipeline: ``ldm-generate --model`` takes the run's folder."""
        self.pipeline(model).save_pretrained(folder, torch.float16)

    def pipeline(self, unet: UNet) -> Pipeline:
        defaults = Defaults.from_dict(self.options.defaults, "options.defaults")
        return Pipeline(self.vae, self.text_encoder, self.tokenizer, unet, self.scheduler, defaults)


def captioned_pictures(name: str, options: dict[str, Any]) -> Pictures:
    """Open a data set with captions. Raises ArgumentError for a stream: see there."""
    data = open_data(name, options)
    if not isinstance(data, Pictures):
        raise ArgumentError(
            f"{name} is a stream, of which latents cannot be kept; leave data.streaming out"
        )
    data.captions(torch.arange(1))
    return data


def picture_sizes(data: Pictures, buckets: dict[str, Any] | None, multiple: int) -> list[Size]:
    """Return the sizes in px to encode pictures at, each side a multiple of ``multiple``.

    Raises ArgumentError where a size is not, or is not given for pictures of many sizes.
    """
    side = data.options.size
    if side is None and (buckets is not None or not data.cheap):
        raise ArgumentError(f"set data.size, in px, for the pictures of {data.name}")
    if buckets is None:
        size = data.shape(0) if side is None else (side, side)
        if size[0] % multiple or size[1] % multiple:
            raise ArgumentError(
                f"pictures have {size[1]} × {size[0]} px; sides must be multiples of {multiple} px "
                "for this VAE and U-Net; set data.size"
            )
        return [size]
    assert side is not None  # see above
    for key in buckets.keys() - {"multiple", "max_ratio"}:
        raise ArgumentError(f"buckets.{key} is not an option; known are multiple and max_ratio")
    step = buckets.get("multiple", math.lcm(64, multiple))
    if step % multiple:
        raise ArgumentError(
            f"buckets.multiple is {step}; it must be a multiple of {multiple} px for this VAE and "
            "U-Net"
        )
    return bucket_sizes(side, step, buckets.get("max_ratio", 2.0))
