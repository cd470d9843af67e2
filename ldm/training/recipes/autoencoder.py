"""Train the VAE on crops of pictures: small ones first, as they show most for little time."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.folder import save_component
from ldm.config import VAEConfig
from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.images import image_grid, to_pil
from ldm.training.config import MOST_ROWS, TrainConfig
from ldm.training.data import open_data
from ldm.training.data.options import MOST_SIDE
from ldm.training.discriminator import SMALLEST, PatchDiscriminator, adversarial_terms
from ldm.training.objectives import psnr, reconstruction_loss
from ldm.training.recipes.base import Recipe
from ldm.training.warm_start import begin_with
from ldm.vae import AutoencoderKL


class Autoencoding(nn.Module):
    """The VAE as one function, the form that data-parallel training wraps."""

    def __init__(self, vae: AutoencoderKL, judged: bool) -> None:
        super().__init__()
        self.vae = vae
        self.discriminator = PatchDiscriminator(vae.config.in_channels) if judged else None

    def forward(self, x: Tensor, noise: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor, ...]]:
        """Pixels (B,3,H,W), noise (B,4,H/8,W/8) → reconstruction like x, KL in nats per value.

        With a discriminator, the two ``adversarial_terms``, too.
        """
        q = self.vae.posterior(x)
        reconstruction = self.vae.decode(q.sample(noise) * self.vae.config.scaling_factor).float()
        terms: tuple[Tensor, ...] = ()
        if self.discriminator is not None:
            terms = adversarial_terms(self.discriminator, x, reconstruction)
        return reconstruction, q.kl().float().mean(), terms


@dataclass
class Phase:
    """A part of the run, with its own crops."""

    until: float = within("(0, 1]")  # fraction of the run
    size: int = within(f"[1, {MOST_SIDE}]")  # of a crop, px
    batch_size: int = within(f"[1, {MOST_ROWS}]")


@dataclass
class AutoencoderOptions:
    """The table ``[options]``."""

    phases: list[dict[str, Any]]  # see Phase
    kl_weight: float = within("[0, inf)")
    gradient_weight: float = within("[0, inf)")  # of the edges' error, beside L1 + MSE
    adversarial_weight: float = within("[0, inf)", 0.0)  # of the patch discriminator's term …
    adversarial_from: float = within("[0, 1)", 0.5)  # … from that fraction of the run on
    # Leave the encoder as ``start`` has it, so that latents stay what a U-Net has learnt.
    decoder_only: bool = False
    # How the pictures are read (see DataOptions); by default random crops, mirrored too.
    data: dict[str, Any] = field(default_factory=dict)


class AutoencoderRecipe(Recipe[Autoencoding]):
    """Learns to reproduce crops."""

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        self.options = options = read_table(AutoencoderOptions, config.options, "options.")
        random = {"resize": 0, "crop": "random", "flip": True}
        self.data = open_data(config.data, random | options.data)
        # While training, latents are as they come; ``save`` finds the scale for unit variance.
        vae = adapt_to_cpu(
            AutoencoderKL(VAEConfig.from_dict({**config.model, "scaling_factor": 1.0}))
        )
        begin_with(vae, config.start)
        self.scaling_factor: float | None = None  # to be found by ``save``
        if options.decoder_only:
            if not config.start:
                raise ArgumentError("options.decoder_only needs start, the VAE with the encoder")
            vae.encoder.requires_grad_(False)
            vae.quant_conv.requires_grad_(False)
            own = VAEConfig.from_file(Path(config.start) / "config.json")
            self.scaling_factor = own.scaling_factor
        self.model, self.step = Autoencoding(vae, options.adversarial_weight > 0), 0
        self.phases = [read_table(Phase, phase, "options.phases.") for phase in options.phases]
        if not self.phases or self.phases[-1].until < 1:
            raise ArgumentError("options.phases ends before the run; the last needs until = 1.0")
        smallest = min(phase.size for phase in self.phases)
        if options.adversarial_weight and smallest < SMALLEST:
            raise ArgumentError(
                f"options.phases has crops of {smallest} px, too small for the discriminator; make "
                f"them at least {SMALLEST}, or set options.adversarial_weight to 0"
            )

    def prepare(self, accelerator: Accelerator) -> None:
        """Read the pictures of the evaluations, so that errors in them show before training.

        Raises ArgumentError for pictures of several sizes without ``data.size``.
        """
        self.shown = self.data.pixels(examples(self.data.held_out, self.data.train, 64))

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        self.step = step
        phase = next(p for p in self.phases if step < p.until * self.config.steps)
        x = self.data.batch(step, phase.batch_size, generator, phase.size).pixels
        return {"x": x, "noise": torch.randn(self._latent(x), generator=generator)}

    def example(self, count: int) -> dict[str, Tensor]:
        phase = max(self.phases, key=lambda phase: phase.batch_size * phase.size**2)
        x = torch.zeros(count, self.model.vae.config.in_channels, phase.size, phase.size)
        return {"x": x, "noise": torch.zeros(self._latent(x))}

    def _latent(self, x: Tensor) -> tuple[int, ...]:
        vae = self.model.vae.config
        return (len(x), vae.latent_channels, *(side // vae.scale for side in x.shape[2:]))

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x = batch["x"].contiguous(memory_format=torch.channels_last)
        options = self.options
        reconstruction, kl, terms = model(x, batch["noise"])
        error = reconstruction_loss(reconstruction, x, options.gradient_weight)
        loss, metrics = error + options.kl_weight * kl, {"kl": kl.detach()}
        if terms:
            fooling, discerning = terms  # the discriminator learns from the start, to be ready
            late = self.step >= options.adversarial_from * self.config.steps
            loss = loss + late * options.adversarial_weight * fooling + discerning
            metrics |= {"fooling": fooling.detach(), "telling": discerning.detach()}
        return loss, metrics

    def evaluate(self, model: Autoencoding) -> tuple[Image.Image | None, dict[str, float]]:
        x, device = self.shown, next(model.parameters()).device
        reconstruction = torch.cat(
            [model.vae.decode(model.vae.encode(part.to(device))).cpu() for part in x.split(8)]
        )
        pairs = torch.stack([x, reconstruction], dim=1)[:16].flatten(0, 1)
        return image_grid(to_pil(pairs), columns=8), {"psnr": psnr(reconstruction, x)}

    def save(self, model: Autoencoding, folder: Path) -> None:
        scale = self.scaling_factor or self.unit_scale(model.vae)
        vae = AutoencoderKL(replace(model.vae.config, scaling_factor=scale))
        vae.load_state_dict(model.vae.state_dict())
        save_component(vae, folder / "vae")

    @torch.no_grad()
    def unit_scale(self, vae: AutoencoderKL) -> float:
        """Compute the factor that gives the latents of some pictures a standard deviation of 1."""
        sample = self.data.readable(examples(self.data.train, self.data.held_out, 256))
        device = next(vae.parameters()).device
        parts = [vae.encode(self.data.pixels(part).to(device)) for part in sample.split(16)]
        return round(1 / float(torch.cat(parts).std()), 5)


def examples(rows: Tensor, otherwise: Tensor, count: int) -> Tensor:
    """Pick up to ``count`` of the rows, evenly spread; of ``otherwise`` if there are none."""
    rows = rows if len(rows) else otherwise
    return rows[:: max(1, len(rows) // count)][:count]
