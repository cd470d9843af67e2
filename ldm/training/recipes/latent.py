"""Train the U-Net on cached latents of captioned pictures (Rombach et al. 2022, eq. 3)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor, nn

from ldm.assets import asset_path
from ldm.checkpoints.folder import load_component
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig, UNetConfig, read_json, write_json
from ldm.images import image_grid
from ldm.pipeline import Defaults, Pipeline
from ldm.scheduler import DDPMScheduler
from ldm.tokenizer import CLIPTokenizer
from ldm.training.config import TrainConfig
from ldm.training.data import CaptionedImages
from ldm.training.objectives import diffusion_weight
from ldm.unet import UNet
from ldm.vae import AutoencoderKL


class LatentRecipe:
    """Learns to denoise the latents of pictures, given their captions.

    Options:
        vae, text_encoder: folders of the finished ones.
        caption_dropout: fraction of the captions replaced by "", for guidance.
        min_snr_gamma: see ``diffusion_weight``; may be left out.
        scheduler: as in scheduler_config.json.
        defaults: of generation, as in generation_config.json.
        prompts: what to draw to show the progress.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config, options = config, config.options
        self.data = CaptionedImages(config.data)
        self.vae = load_component(AutoencoderKL, Path(options["vae"]), torch.float32)
        self.text_encoder = load_component(
            CLIPTextEncoder, Path(options["text_encoder"]), torch.float32
        )
        self.tokenizer = CLIPTokenizer.from_pretrained(asset_path("weights") / "tokenizer")
        self.scheduler = DDPMScheduler(
            SchedulerConfig.from_dict(options["scheduler"], "options.scheduler")
        )
        self.model = UNet(UNetConfig.from_dict(config.model))
        # Start from the prediction 0, as Ho et al.'s code does.
        nn.init.zeros_(self.model.conv_out.weight)
        nn.init.zeros_(self.model.conv_out.bias)

    def prepare(self, accelerator: Accelerator) -> None:
        """Encode every picture once; the file is kept in the run folder and belongs to one VAE."""
        run = Path(self.config.output)
        file, stamp = run / "latents.npy", run / "latents.json"
        belongs = {"vae": self.config.options["vae"], "weights": fingerprint(self.vae)}
        if read_json(stamp, optional=True) != belongs:
            if accelerator.is_main_process:
                run.mkdir(parents=True, exist_ok=True)
                create_latents(self.vae, self.data, file)
            accelerator.wait_for_everyone()
            everything = torch.arange(len(self.data.images))
            share = everything.tensor_split(accelerator.num_processes)[accelerator.process_index]
            encode(self.vae, self.data, share, file)
            accelerator.wait_for_everyone()
            if accelerator.is_main_process:
                write_json(stamp, belongs)
        self.latents = np.load(file, mmap_mode="r")
        captions = sorted({row["caption"] for row in self.data.rows} | {""})
        ids = dict(zip(captions, range(len(captions)), strict=True))
        self.tokens = torch.tensor(self.tokenizer(captions), dtype=torch.int32)
        self.caption = torch.tensor([ids[row["caption"]] for row in self.data.rows])
        self.empty = ids[""]
        self.text_encoder.to(accelerator.device)

    def batch(self, step: int, generator: torch.Generator) -> dict[str, Tensor]:
        count = self.config.batch_size
        indices = self.data.draw(count, generator)
        x0 = torch.from_numpy(self.latents[indices.numpy()]).float()
        caption = self.caption[indices]
        caption[torch.rand(count, generator=generator) < self.config.options["caption_dropout"]] = (
            self.empty
        )
        # Stratified times: one from each of B equal spans, so that every batch sees every level.
        spread = (torch.arange(count) + torch.rand(count, generator=generator)) / count
        t = (spread * len(self.scheduler.alphas_cumprod)).long()
        return {
            "x0": x0,
            "noise": torch.randn(x0.shape, generator=generator),
            "t": t[torch.randperm(count, generator=generator)],
            "ids": self.tokens[caption],
        }

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        x0, noise, t = batch["x0"], batch["noise"], batch["t"]
        with torch.no_grad():
            context = self.text_encoder(batch["ids"].long()).context
        x_t = self.scheduler.add_noise(x0, noise, t).contiguous(memory_format=torch.channels_last)
        error = (
            (model(x_t, t, context).float() - self.scheduler.target(x0, noise, t))
            .square()
            .mean((1, 2, 3))
        )
        weight = diffusion_weight(self.scheduler, t, self.config.options.get("min_snr_gamma"))
        return (weight * error).mean(), {"mse": error.detach().mean()}

    def evaluate(self, model: nn.Module) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw the prompts, always from the same seeds."""
        output = self.pipeline(model)(self.config.options["prompts"], seed=0)
        return image_grid(output.images, columns=8), {}

    def save(self, model: nn.Module, folder: Path) -> None:
        """A whole pipeline: ``ldm-generate --model`` takes the run's folder."""
        self.pipeline(model).save_pretrained(folder, torch.float16)

    def pipeline(self, unet: nn.Module) -> Pipeline:
        defaults = Defaults(**self.config.options["defaults"])
        return Pipeline(self.vae, self.text_encoder, self.tokenizer, unet, self.scheduler, defaults)


def fingerprint(module: nn.Module) -> float:
    """A number that tells two sets of weights apart."""
    return float(sum(tensor.double().abs().sum() for tensor in module.state_dict().values()))


def create_latents(vae: AutoencoderKL, data: CaptionedImages, file: Path) -> None:
    """Make the file of latents, float16 (N, C, h, w), still empty."""
    height, width = (side // vae.config.scale for side in data.images.shape[1:3])
    shape = (len(data.images), vae.config.latent_channels, height, width)
    np.lib.format.open_memmap(file, "w+", np.float16, shape).flush()


@torch.no_grad()
def encode(vae: AutoencoderKL, data: CaptionedImages, indices: Tensor, file: Path) -> None:
    """Fill in the mean latents of the pictures ``indices``."""
    latents = np.lib.format.open_memmap(file, "r+")
    vae = vae.to(memory_format=torch.channels_last)
    with torch.autocast("cpu", torch.bfloat16):
        for part in indices.split(8):  # 32 at once leave the cache: a quarter slower
            latents[part.numpy()] = vae.encode(data.pixels(part)).float().numpy()
    latents.flush()
