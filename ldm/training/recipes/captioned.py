"""What the recipes share that learn from the latents of captioned pictures: the batches.

A batch has noised latents (x0, noise, t) and what the U-Net reads of each picture's caption. The
latents are encoded once and kept; some of the captions are dropped, for guidance.
"""

from __future__ import annotations

import math
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config import UNetConfig
from ldm.config.settings import within
from ldm.errors import ArgumentError
from ldm.scheduler import DDPMScheduler
from ldm.text.conditioning import TextModel, time_ids
from ldm.text.tokenizer import CLIPTokenizer
from ldm.training.batches import draw_times
from ldm.training.config import TrainConfig
from ldm.training.data import Pictures, open_data
from ldm.training.data.buckets import bucket_sizes
from ldm.training.data.crops import Size
from ldm.training.finetuning.texts import text_states
from ldm.training.objectives import check_zero_snr, diffusion_weight, simple_error
from ldm.training.recipes.base import Recipe
from ldm.training.recipes.cached_contexts import CachedContexts
from ldm.training.recipes.cached_latents import CachedLatents, Drawn
from ldm.vae import AutoencoderKL

M = TypeVar("M", bound=nn.Module)


@dataclass(kw_only=True)
class CaptionedOptions:
    """What the tables ``[options]`` of these recipes share."""

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
    clip_skip: int = within("[0, inf)", 0)  # layers of the text encoders left out, as diffusers
    # Strength of noise that is one number for each channel of a picture, so that the model learns
    # to change its mean (Guttenberg 2023).
    offset_noise: float = within("[0, inf)", 0.0)
    min_snr_gamma: float | None = within("(0, inf)", None)  # see ``diffusion_weight``
    # Times are drawn more often where shapes are learnt, see ``draw_times``; without
    # ``logit_std``, all equally often.
    logit_mean: float = 0.0
    logit_std: float | None = within("(0, inf)", None)


class CaptionedRecipe(Recipe[M]):
    """Learns with a U-Net that denoises the latents of pictures, given their captions.

    Attributes:
        text_models: the frozen text encoders: one, or SDXL's two.
        unet: the configuration of the U-Net.
    """

    data: Pictures

    def __init__(
        self,
        config: TrainConfig,
        options: CaptionedOptions,
        vae: AutoencoderKL,
        text_models: list[TextModel],
        scheduler: DDPMScheduler,
        unet: UNetConfig,
    ) -> None:
        """Open the data. Raises ArgumentError for options that do not go together."""
        self.config, self.captioned = config, options
        self.data = captioned_pictures(config.data, options.data)
        self.vae, self.text_models, self.scheduler, self.unet = vae, text_models, scheduler, unet
        self.xl = unet.addition_embed_type is not None
        if options.keep_contexts and len(text_models) > 1:
            raise ArgumentError("options.keep_contexts is for one text encoder; leave it out")
        check_zero_snr(scheduler, options.min_snr_gamma)
        multiple = vae.config.scale * 2 ** (len(unet.block_out_channels) - 1)
        self.latents = CachedLatents(
            Path(config.output) / "latents",
            vae,
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
        warn_of_long(self.text_models[0].tokenizer, captions, self.data.name)
        self.tokens = self._tokens(captions)
        self.caption = torch.tensor([ids[text] for text in texts])
        self.empty = ids[""]
        for model in self.text_models:
            model.encoder.to(accelerator.device)
        if self.captioned.keep_contexts:
            folder = Path(self.config.output) / "contexts"
            encoder = self.text_models[0].encoder
            self.contexts = CachedContexts(folder, encoder, self.tokens[:, 0])
            self.contexts.prepare(accelerator)

    def _tokens(self, texts: list[str]) -> Tensor:
        """Return the ids of texts for each text encoder, int32 (N, encoders, 77)."""
        ids = [
            torch.tensor(model.tokenizer(texts), dtype=torch.int32) for model in self.text_models
        ]
        return torch.stack(ids, dim=1)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.noised(self.latents.draw(self.config.batch_size, generator), generator)

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the batch of rows drawn: captions, which of them are dropped, times and noise."""
        options, x0 = self.captioned, drawn.latents
        count, caption = len(x0), self.caption[drawn.rows]
        dropped = torch.rand(count, generator=generator) < options.caption_dropout
        caption[dropped] = self.empty
        t = draw_times(self.scheduler, count, generator, options.logit_mean, options.logit_std)
        noise = torch.randn(x0.shape, generator=generator)
        if offset := options.offset_noise:
            noise += offset * torch.randn((*x0.shape[:2], 1, 1), generator=generator)
        batch = {"x0": x0, "noise": noise, "t": t, "dropped": dropped}
        if options.keep_contexts:
            return batch | {"context": self.contexts.of(caption)}
        return batch | {"ids": self.tokens[caption]}

    def example(self, count: int) -> dict[str, Tensor]:
        height, width = (side // self.vae.config.scale for side in self.latents.sizes[0])
        x0 = torch.zeros(count, self.vae.config.latent_channels, height, width)
        t, dropped = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        batch = {"x0": x0, "noise": x0, "t": t, "dropped": dropped}
        ids = self._tokens([""] * count)
        if self.captioned.keep_contexts:
            width = self.text_models[0].encoder.config.hidden_size
            return batch | {"context": torch.zeros(count, ids.shape[-1], width)}
        return batch | {"ids": ids}

    @torch.no_grad()
    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``UNet.forward`` reads of the captions of a batch.

        SDXL's sizes are those of the latents' pictures, uncropped, as when it draws.
        """
        if "context" in batch:
            return {"context": batch["context"]}
        return text_states(
            self.text_models, batch["ids"], self.xl, self.captioned.clip_skip
        ) | self.sizes(batch)

    def sizes(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sizes that SDXL reads, (B, 6); nothing for others."""
        if not self.xl:
            return {}
        height, width = (side * self.vae.config.scale for side in batch["x0"].shape[2:])
        sizes = torch.tensor(time_ids(height, width, 6, 0.0), device=batch["x0"].device)
        return {"time_ids": sizes.expand(len(batch["x0"]), -1)}

    def x_t(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the noised latents of a batch."""
        x_t = self.scheduler.add_noise(batch["x0"], batch["noise"], batch["t"])
        return x_t.contiguous(memory_format=torch.channels_last)

    def error(self, output: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the U-Net's output for a batch, and scalars to log."""
        error = simple_error(self.scheduler, output, batch["x0"], batch["noise"], batch["t"])
        weight = diffusion_weight(self.scheduler, batch["t"], self.captioned.min_snr_gamma)
        return (weight * error).mean(), {"mse": error.detach().mean()}


def captioned_pictures(name: str, options: dict[str, Any]) -> Pictures:
    """Open a data set with captions. Raises ArgumentError for a stream: see there."""
    data = open_data(name, options)
    if not isinstance(data, Pictures):
        raise ArgumentError(
            f"{name} is a stream, of which latents cannot be kept; leave data.streaming out"
        )
    data.captions(torch.arange(1))
    return data


def warn_of_long(tokenizer: CLIPTokenizer, captions: list[str], name: str) -> None:
    """Warn of captions that do not fit into the text encoder, and are cut."""
    most = tokenizer.model_max_length - 2
    long = [text for text in captions if len(tokenizer.encode(text)) > most]
    if long:
        warnings.warn(
            f"{len(long)} of {len(captions) - 1} different captions of {name} have more than "
            f"{most} tokens and are cut there (such as {long[0][:60]!r}, …)",
            stacklevel=2,
        )


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
