"""What the recipes share that learn from the latents of captioned pictures: the batches.

A batch has noised latents (x0, noise, t) and what the U-Net reads of each picture's caption. The
latents are encoded once and kept; some of the captions are dropped, for guidance. Masks weigh parts
of a picture, class pictures (DreamBooth) are part of a batch, where the options say so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar, TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config import UNetConfig
from ldm.errors import ArgumentError, DataError
from ldm.scheduler import DDPMScheduler
from ldm.text.conditioning import TextModel, time_ids
from ldm.training.batches import draw_times
from ldm.training.config import TrainConfig
from ldm.training.data import Pictures, step_generator
from ldm.training.data.caption_changes import warn_without_word
from ldm.training.data.masks import open_masks
from ldm.training.finetuning.texts import text_states
from ldm.training.objectives import check_zero_snr, diffusion_weight, simple_error
from ldm.training.recipes.base import Recipe
from ldm.training.recipes.cached_contexts import CachedContexts
from ldm.training.recipes.cached_latents import CachedLatents, Drawn
from ldm.training.recipes.captioned_data import (
    captioned_pictures,
    ids_of,
    picture_sizes,
    warn_of_few,
    warn_of_long,
)
from ldm.training.recipes.captioned_options import CaptionedOptions
from ldm.training.recipes.prior import (
    check_prior,
    missing_class_pictures,
    new_word,
    row_weights,
    with_class_pictures,
)
from ldm.training.recipes.size_groups import count_instances
from ldm.vae import AutoencoderKL

M = TypeVar("M", bound=nn.Module)


class CaptionedRecipe(Recipe[M]):
    """Learns with a U-Net that denoises the latents of pictures, given their captions.

    Attributes:
        text_models: the frozen text encoders: one, or SDXL's two.
        unet: the configuration of the U-Net.
    """

    data: Pictures
    # Whether SDXL reads the pictures' stored sizes and crops, instead of those it draws with.
    reads_crops: ClassVar[bool] = True

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
        check_prior(options, config.batch_size)
        self.data = captioned_pictures(
            config.data, options.data, options.instance_prompt, masks=True
        )
        if self.data.options.crop == "random":
            raise ArgumentError(
                'data.crop is "random", but the latents of each picture are encoded once, of its '
                "centre; leave it out"
            )
        self.vae, self.text_models, self.scheduler, self.unet = vae, text_models, scheduler, unet
        self.xl = unet.addition_embed_type is not None
        if options.keep_contexts and options.change:
            name = "shuffle_caption" if options.shuffle_caption else "caption_tag_dropout_rate"
            raise ArgumentError(
                "options.keep_contexts keeps the states of captions that never change, but "
                f"options.{name} changes them in each batch; leave one of them out"
            )
        check_zero_snr(scheduler, options.min_snr_gamma)
        multiple = vae.config.scale * 2 ** (len(unet.block_out_channels) - 1)
        self.latents = CachedLatents(
            Path(config.output) / "latents",
            vae,
            self.data,
            picture_sizes(self.data, options.buckets, multiple),
            flip=self.data.options.flip,
            masks=open_masks(self.data),
        )

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every picture once, and the captions if they are kept."""
        # Also where a resumed run has all latents: it draws samples as one without a stop.
        vae: nn.Module = self.vae.to(accelerator.device)
        vae.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if missing := missing_class_pictures(self.captioned, self.config.output):
            raise DataError(
                f"{missing} of {self.captioned.num_class_images} class pictures are missing; add "
                "them to options.class_data, or set options.num_class_images to those there are"
            )
        self.add_class_pictures()
        if accelerator.is_main_process:
            warn_of_few(self.data, self.rows_to_learn, self.latents.sizes[0])
            if word := new_word(self.captioned):
                warn_without_word(self.data.captions(self.rows_to_learn), word)
        self.latents.prepare(accelerator)
        captions = sorted({*self.texts(torch.arange(len(self.data))), ""})
        warn_of_long(self.text_models[0].tokenizer, captions, self.data.name)
        for model in self.text_models:
            model.encoder.to(accelerator.device)
        if self.captioned.keep_contexts:
            self.number = {text: i for i, text in enumerate(captions)}
            self.contexts = CachedContexts(
                Path(self.config.output) / "contexts",
                [model.encoder for model in self.text_models],
                lambda ids: self.text_conditions({"ids": ids}),
                captions,
                self._tokens,
                self.captioned.clip_skip,
            )
            self.contexts.prepare(accelerator)

    @property
    def rows_to_learn(self) -> Tensor:
        """Return the training rows without class pictures."""
        return self.data.train[self.data.train < count_instances(self.data)]

    def add_class_pictures(self) -> None:
        """Put class pictures, if the options have any, behind those to learn."""
        if count_instances(self.data) == len(self.data):
            options = self.captioned
            self.data = self.latents.data = with_class_pictures(
                self.data, options, options.data, self.config.output
            )

    def texts(self, rows: Tensor) -> list[str]:
        """Return the captions of rows (B,), as far as they are the same in all batches.

        Those of class pictures are as they are.
        """
        instances = count_instances(self.data)
        pairs = zip(rows.tolist(), self.data.captions(rows), strict=True)
        return [self.captioned.begin(text) if row < instances else text for row, text in pairs]

    def _tokens(self, texts: Sequence[str]) -> Tensor:
        """Return the ids of texts for each text encoder, int32 (N, encoders, 77)."""
        ids = [
            torch.stack([ids_of(model.tokenizer, text) for text in texts])
            for model in self.text_models
        ]
        return torch.stack(ids, dim=1)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        return self.noised(self.latents.draw(self.config.batch_size, generator), generator)

    def first_batch(self, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Return the batch of step 0 without ``prepare``, for a look at it.

        Only its own pictures are encoded. Class pictures are in it if they are there; captions are
        always ids.
        """
        if not missing_class_pictures(self.captioned, self.config.output):
            self.add_class_pictures()
        generator = step_generator(self.config.seed, 0)
        drawn = self.latents.draw_first(self.config.batch_size, generator, torch.device(device))
        if self.captioned.keep_contexts:
            return self._described(drawn, generator)[0]
        return self.noised(drawn, generator)

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        """Return the batch of rows drawn: captions, which of them are dropped, times and noise."""
        batch, texts = self._described(drawn, generator)
        if not self.captioned.keep_contexts:
            return batch
        del batch["ids"]
        return batch | self.contexts.of(torch.tensor([self.number[text] for text in texts]))

    def _described(
        self, drawn: Drawn, generator: torch.Generator
    ) -> tuple[dict[str, Tensor], list[str]]:
        """Return a batch, with captions as ids, and the captions."""
        options, x0 = self.captioned, drawn.latents
        count = len(x0)
        dropped = torch.rand(count, generator=generator) < options.caption_dropout
        t = draw_times(self.scheduler, count, generator, options.logit_mean, options.logit_std)
        noise = torch.randn(x0.shape, generator=generator)
        if offset := options.offset_noise:
            noise += offset * torch.randn((*x0.shape[:2], 1, 1), generator=generator)
        texts = self.drawn_texts(drawn.rows, dropped, generator)
        batch = {"x0": x0, "noise": noise, "t": t, "dropped": dropped, "ids": self._tokens(texts)}
        if self.xl and self.reads_crops:
            batch["time_ids"] = drawn.time_ids
        if drawn.masks is not None:
            batch["mask"] = drawn.masks
        instances = count_instances(self.data)
        if instances < len(self.data):
            batch["weight"] = row_weights(drawn.rows, instances, options.prior_loss_weight)
        return batch, texts

    def drawn_texts(self, rows: Tensor, dropped: Tensor, generator: torch.Generator) -> list[str]:
        """Return the captions of a batch: those of rows to learn changed, some of all dropped."""
        texts, instances = self.texts(rows), count_instances(self.data)
        for i, (row, drop) in enumerate(zip(rows.tolist(), dropped.tolist(), strict=True)):
            if row < instances:
                texts[i] = self.captioned.draw(texts[i], generator)
            if drop:
                texts[i] = ""
        return texts

    def example(self, count: int) -> dict[str, Tensor]:
        height, width = (side // self.vae.config.scale for side in self.latents.sizes[0])
        x0 = torch.zeros(count, self.vae.config.latent_channels, height, width)
        t, dropped = torch.zeros(count, dtype=torch.int64), torch.zeros(count, dtype=torch.bool)
        batch = {"x0": x0, "noise": x0, "t": t, "dropped": dropped}
        ids = self._tokens([""] * count)
        if self.captioned.keep_contexts:
            return batch | self.text_conditions({"ids": ids})
        return batch | {"ids": ids}

    def conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``UNet.forward`` reads of the captions and the sizes of a batch."""
        return self.text_conditions(batch) | self.sizes(batch)

    @torch.no_grad()
    def text_conditions(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return what ``UNet.forward`` reads of the captions of a batch."""
        if "context" in batch:
            return {name: batch[name] for name in ("context", "pooled") if name in batch}
        return text_states(self.text_models, batch["ids"], self.xl, self.captioned.clip_skip)

    def sizes(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return the sizes that SDXL reads, (B, 6); nothing for others.

        Of a batch without any, they are those of the latents' pictures, as when it draws.
        """
        if not self.xl:
            return {}
        if "time_ids" in batch:
            return {"time_ids": batch["time_ids"]}
        height, width = (side * self.vae.config.scale for side in batch["x0"].shape[2:])
        sizes = torch.tensor(time_ids(height, width, 6, 0.0), device=batch["x0"].device)
        return {"time_ids": sizes.expand(len(batch["x0"]), -1)}

    def x_t(self, batch: dict[str, Tensor]) -> Tensor:
        """Return the noised latents of a batch."""
        x_t = self.scheduler.add_noise(batch["x0"], batch["noise"], batch["t"])
        return x_t.contiguous(memory_format=torch.channels_last)

    def error(self, output: Tensor, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the loss of the U-Net's output for a batch, and scalars to log.

        The squared error of each latent is weighed by the batch's mask, as in sd-scripts: a mean
        over all latents, so that a picture with much black counts less. The min-SNR weight of the
        time and the row's own weight the error of a row.
        """
        args = self.scheduler, output, batch["x0"], batch["noise"], batch["t"]
        error = simple_error(*args, mask=batch.get("mask"))
        weight = diffusion_weight(self.scheduler, batch["t"], self.captioned.min_snr_gamma)
        if "weight" in batch:
            weight = weight * batch["weight"]
        return (weight * error).mean(), {"mse": error.detach().mean()}
