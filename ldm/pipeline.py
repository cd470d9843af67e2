"""The pipeline: text, or text and an image, to pictures.

    pipe = Pipeline.from_pretrained()
    pipe("a red car", seed=1).images[0].save("car.png")

Source: Rombach et al. 2022, figure 3: the diffusion runs in the autoencoder's latent space.
"""

from __future__ import annotations

import math
import warnings
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm import __version__, images
from ldm.checkpoints.folder import load_component, save_component
from ldm.checkpoints.source import find_model
from ldm.clip import CLIPTextEncoder
from ldm.conditioning import encode_prompts
from ldm.config import Config, SchedulerConfig, read_json, write_json
from ldm.devices import choose_device, choose_dtype
from ldm.errors import ArgumentError, CheckpointError
from ldm.guidance import Denoiser
from ldm.noise import Noise
from ldm.samplers import Choice, bind, first_noise_scale, from_config, plan, sample, start_index
from ldm.scheduler import DDPMScheduler
from ldm.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

if TYPE_CHECKING:
    from PIL.Image import Image

# Of one picture; more is a slip of the finger.
MAX_SIDE, MAX_PIXELS = 8192, 4096 * 4096


@dataclass(frozen=True)
class Defaults(Config):
    """What a call uses by default: ``generation_config.json``, else diffusers' values."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5


@dataclass
class Output:
    """The pictures of a call, and the seed that draws each one alone (None for a generator's)."""

    images: list[Image] | Tensor
    seeds: list[int | None]


@dataclass
class Progress:
    """What ``Pipeline.stream`` yields after each step; the last one has the ``output``."""

    step: int  # steps done
    steps: int  # steps of this run: image-to-image leaves some out
    latents: Tensor  # (B, C, h, w), float32, unit scale: x at the level reached
    x0: Tensor  # (B, C, h, w): the model's present guess of the clean latents
    output: Output | None = None


class Pipeline:
    """VAE, text encoder, U-Net and scheduler of a Stable Diffusion 1.x model, composed."""

    def __init__(
        self,
        vae: AutoencoderKL,
        text_encoder: CLIPTextEncoder,
        tokenizer: CLIPTokenizer,
        unet: UNet,
        scheduler: DDPMScheduler | None = None,
        defaults: Defaults | None = None,
    ) -> None:
        """Without a ``scheduler``: the noise schedule of Stable Diffusion, and DDPM as sampler."""
        self.vae, self.text_encoder, self.tokenizer, self.unet = vae, text_encoder, tokenizer, unet
        config = (
            scheduler.config
            if scheduler
            else SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        )
        # Old Stable Diffusion's configs lack both; diffusers' pipeline always sets them so.
        self.scheduler = DDPMScheduler(replace(config, steps_offset=1, clip_sample=False))
        self.defaults = defaults or Defaults()
        if unet.config.cross_attention_dim != text_encoder.config.hidden_size:
            raise CheckpointError(
                f"the U-Net reads texts of width {unet.config.cross_attention_dim}, "
                f"but the text encoder writes {text_encoder.config.hidden_size}"
            )
        if unet.config.in_channels != vae.config.latent_channels:
            raise CheckpointError(
                f"the U-Net has {unet.config.in_channels} input channels, the VAE "
                f"{vae.config.latent_channels} latent channels; "
                "inpainting models are not supported yet"
            )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache_dir: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
    ) -> Pipeline:
        """Load a model: None is the built-in one, else a diffusers folder or a hub id.

        device: None takes CUDA where there is one, else the CPU.
        dtype: of the U-Net and the text encoder; None chooses by the device (see ``ldm.devices``).
        The VAE is float32 unless bfloat16 is chosen.
        Raises CheckpointError for a model that is missing, broken or not supported.
        """
        folder = find_model(
            model,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
        )
        index = read_json(folder / "model_index.json")
        if index.get("_class_name") != "StableDiffusionPipeline":
            raise CheckpointError(
                f"{folder / 'model_index.json'} is of a {index.get('_class_name')}; "
                "only StableDiffusionPipeline (Stable Diffusion 1.x and ours) is supported so far"
            )
        device = choose_device(device)
        dtype = choose_dtype(dtype, device)
        # SD's VAE overflows in float16.
        vae_dtype = torch.float32 if dtype == torch.float16 else dtype
        extra = folder / "generation_config.json"
        return cls(
            load_component(AutoencoderKL, folder / "vae", vae_dtype, device),
            load_component(CLIPTextEncoder, folder / "text_encoder", dtype, device),
            CLIPTokenizer.from_pretrained(folder / "tokenizer"),
            load_component(UNet, folder / "unet", dtype, device),
            DDPMScheduler(
                SchedulerConfig.from_file(folder / "scheduler" / "scheduler_config.json")
            ),
            Defaults.from_dict(read_json(extra, optional=True), source=str(extra)),
        )

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that diffusers' StableDiffusionPipeline loads. None keeps the dtype."""
        folder = Path(folder)
        save_component(self.vae, folder / "vae", dtype)
        save_component(self.text_encoder, folder / "text_encoder", dtype)
        save_component(self.unet, folder / "unet", dtype)
        self.tokenizer.save_pretrained(folder / "tokenizer")
        write_json(folder / "scheduler" / "scheduler_config.json", self.scheduler.config.to_dict())
        write_json(folder / "generation_config.json", vars(self.defaults))
        index = {
            "_class_name": "StableDiffusionPipeline",
            "_ldm_version": __version__,
            "feature_extractor": [None, None],
            "requires_safety_checker": False,
            "safety_checker": [None, None],
            "scheduler": ["diffusers", self.scheduler.config.sampler_class],
            "text_encoder": ["transformers", self.text_encoder.config.architectures[0]],
            "tokenizer": ["transformers", "CLIPTokenizer"],
            "unet": ["diffusers", "UNet2DConditionModel"],
            "vae": ["diffusers", "AutoencoderKL"],
        }
        write_json(folder / "model_index.json", index)

    @property
    def device(self) -> torch.device:
        """Where the U-Net is."""
        return next(self.unet.parameters()).device

    def default_size(self) -> tuple[int, int]:
        """(height, width) in pixels that the model was trained for."""
        side = (self.unet.config.sample_size or 64) * self.vae.config.scale
        return side, side

    def __call__(self, prompt: str | Sequence[str] = "", **arguments: object) -> Output:
        """Draw pictures: ``stream``, which has the arguments, run to its end."""
        (last,) = deque(self.stream(prompt, **arguments), maxlen=1)
        return last.output

    def stream(
        self,
        prompt: str | Sequence[str] = "",
        *,
        negative_prompt: str | Sequence[str] | None = None,
        image: str | Path | Image | Sequence[Image] | None = None,
        strength: float = 0.8,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        latents: Tensor | None = None,
        sampler: str | None = None,
        eta: float = 0.0,
        clip_skip: int = 1,
        output_type: str = "pil",
    ) -> Iterator[Progress]:
        """Draw pictures, yielding after every step; the last ``Progress`` holds the ``output``.

        Args:
            prompt: one text or several; "" draws without a text.
            negative_prompt: what to steer away from; one for all prompts, or one for each.
            image: where to start from (image-to-image): one for all prompts, or one for each.
            strength: in [0, 1], how much of the image is redrawn:
                ``min(int(steps·strength), steps)`` steps run, but at least one; 0 returns it.
            height, width: pixels, multiples of 8; None is the image's size rounded down to a
                multiple of 8, without an image the model's own.
            num_inference_steps, guidance_scale: None as the model advises, else 50 and 7.5.
                Guidance is off for scales up to 1.
            num_images_per_prompt: pictures of each prompt.
            seed: picture i is drawn from seed + i, alone or in a batch; None picks one.
            generator: CPU generator(s) as in diffusers, in place of a seed: one for all, or each.
            latents: the first noise (B, C, h, w) instead of drawing it.
            sampler: "ddpm", "ddim", "dpmpp_2m", "dpmpp_2m_karras", … ; None as the model's
                ``scheduler_config.json`` says.
            eta: in [0, 1], noise that "ddim" adds.
            clip_skip: 1 takes the text encoder's last layer, 2 the one before (as A1111 counts).
            output_type: "pil", "pt" (float32 (B,3,H,W) in [0, 1]) or "latent" (scaled latents).

        Raises ArgumentError for an argument that cannot work: at once, not when the first step is
        asked for, and before anything is computed.
        """
        prompts = [prompt] if isinstance(prompt, str) else list(prompt or ())
        if not all(isinstance(text, str) for text in prompts):
            raise ArgumentError(f"prompt is {prompt!r}; expected a text or a list of texts")
        if num_images_per_prompt < 1 or not prompts:
            raise ArgumentError(
                f"num_images_per_prompt is {num_images_per_prompt} for {len(prompts)} prompts; "
                "both must be at least 1"
            )
        if output_type not in ("pil", "pt", "latent"):
            raise ArgumentError(f"output_type is {output_type!r}; expected 'pil', 'pt' or 'latent'")
        negatives = self._for_each(prompts, negative_prompt or "", "negative_prompt")
        prompts, negatives = (
            repeat(prompts, num_images_per_prompt),
            repeat(negatives, num_images_per_prompt),
        )

        n = (
            self.defaults.num_inference_steps
            if num_inference_steps is None
            else num_inference_steps
        )
        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        if not math.isfinite(scale):
            raise ArgumentError(
                f"guidance_scale is {scale}; it must be a number, 1 to 15 as a rule"
            )
        choice = self.choose_sampler(sampler)
        steps = plan(self.scheduler, choice.name, n, choice.karras)
        step = bind(self.scheduler, choice.name, eta)
        first = start_index(n, strength) if image is not None else 0
        pixels = self._read(image, len(prompts), num_images_per_prompt, height, width)
        height, width = self._size(height, width) if pixels is None else pixels.shape[2:]
        channels, factor = self.vae.config.latent_channels, self.vae.config.scale
        noise = Noise((len(prompts), channels, height // factor, width // factor), seed, generator)
        if latents is not None and tuple(latents.shape) != noise.shape:
            raise ArgumentError(
                f"latents has the shape {tuple(latents.shape)}; expected {noise.shape}"
            )

        context, negative = (
            encode_prompts(self.tokenizer, self.text_encoder, texts, clip_skip)
            for texts in (prompts, negatives)
        )
        denoise = Denoiser(self.unet, self.scheduler, context, negative, scale)

        @torch.no_grad()
        def run() -> Iterator[Progress]:
            start = self._encode(pixels, noise) if pixels is not None else None
            x_first = self._first(start, steps, first, choice, noise, latents)
            progress = Progress(0, n - first, x_first, x_first)
            if progress.steps == 0:
                kept = start if output_type == "latent" else pixels.expand(len(prompts), -1, -1, -1)
                yield replace(progress, output=self._output(kept, noise, output_type))
            for x, index, x0 in sample(
                step, denoise, x_first, steps[first:], lambda: noise().to(self.device)
            ):
                progress = Progress(index + 1, n - first, x, x0)
                last = progress.step == progress.steps
                # At the ends only: on a GPU every look at the values makes the CPU wait.
                if (index == 0 or last) and not x0.isfinite().all():
                    raise self._blame()
                if last:
                    progress.output = self._finish(x, noise, output_type)
                yield progress

        return run()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → pixels (B, 3, 8h, 8w), float32 in [-1, 1].

        One picture at a time, so that a batch needs no more memory than a picture.
        A result that is not finite is computed once more in float32, with a warning, and the VAE
        stays so. Raises CheckpointError where that does not help: no black picture is ever
        returned instead.
        """
        vae = self.vae
        first = next(vae.parameters()).dtype
        for dtype in dict.fromkeys([first, torch.float32]):
            if dtype != first:
                warnings.warn(f"the VAE overflows in {first}: decoding in float32", stacklevel=2)
            parts = [
                vae.to(dtype).decode(part.to(self.device, dtype)).float().cpu()
                for part in latents.split(1)
            ]
            pixels = torch.cat(parts)
            if pixels.isfinite().all():
                return pixels.clamp(-1, 1)
        raise self._blame()

    def _blame(self) -> CheckpointError:
        """Why a result is not finite: broken weights by their name, or else an overflow."""
        for name in ("unet", "text_encoder", "vae"):
            for key, tensor in getattr(self, name).state_dict().items():
                if not tensor.isfinite().all():
                    return CheckpointError(
                        f"{key} of the {name} holds NaN or infinite weights; get the model again"
                    )
        return CheckpointError(
            "the picture is not finite: the model overflows; try dtype='float32'"
        )

    def _finish(self, x: Tensor, noise: Noise, output_type: str) -> Output:
        return self._output(x if output_type == "latent" else self.decode(x), noise, output_type)

    def _output(self, result: Tensor, noise: Noise, output_type: str) -> Output:
        """``result`` is latents where they are asked for, else pixels in [-1, 1]."""
        if output_type == "pil":
            return Output(images.to_pil(result), noise.seeds)
        return Output(result if output_type == "latent" else result / 2 + 0.5, noise.seeds)

    def choose_sampler(self, sampler: str | None) -> Choice:
        """The sampler of a name such as "dpmpp_2m_karras", or the model's own for None."""
        if sampler is None:
            return from_config(self.scheduler.config)
        name = sampler.removesuffix("_karras")
        return Choice(name, name != sampler)

    def _for_each(self, prompts: list[str], value: str | Sequence[str], name: str) -> list[str]:
        values = [value] * len(prompts) if isinstance(value, str) else list(value)
        if len(values) != len(prompts):
            raise ArgumentError(
                f"{name} has {len(values)} texts for {len(prompts)} prompts; "
                "give one, or one for each"
            )
        return values

    def _size(self, height: int | None, width: int | None) -> tuple[int, int]:
        own = self.default_size()
        size = (
            own[0] if height is None else height,
            own[1] if width is None else width,
        )
        factor = self.vae.config.scale
        for name, value in zip(("height", "width"), size, strict=True):
            if not isinstance(value, Integral) or value < factor or value % factor:
                raise ArgumentError(
                    f"{name} is {value}; it must be a positive multiple of {factor}"
                )
        if size[0] * size[1] > MAX_PIXELS:
            raise ArgumentError(
                f"{size[1]}x{size[0]} is {size[0] * size[1]:,} pixels; at most {MAX_PIXELS:,} work"
            )
        if max(size) > MAX_SIDE:
            raise ArgumentError(
                f"the size is {size[1]}x{size[0]}; a side may have {MAX_SIDE} pixels"
            )
        return size

    def _read(
        self,
        image: str | Path | Image | Sequence[Image] | None,
        count: int,
        repeats: int,
        height: int | None,
        width: int | None,
    ) -> Tensor | None:
        """The pictures to start from, (1 or count, 3, H, W) in [-1, 1], all of one size."""
        if image is None:
            return None
        sources = list(image) if isinstance(image, (list, tuple)) else [image]
        if len(sources) not in (1, count // repeats):
            raise ArgumentError(
                f"image holds {len(sources)} pictures for {count // repeats} prompts; "
                "give one, or one for each"
            )
        pictures = [images.load_image(source) for source in sources]
        factor = self.vae.config.scale
        own = pictures[0]
        size = self._size(
            own.height // factor * factor if height is None else height,
            own.width // factor * factor if width is None else width,
        )
        pixels = images.to_tensor([images.resize(picture, *size) for picture in pictures])
        return pixels if len(pixels) == 1 else pixels.repeat_interleave(repeats, dim=0)

    def _encode(self, pixels: Tensor, noise: Noise) -> Tensor:
        """Scaled latents (B, C, h, w) of the pictures, float32, sampled as diffusers does."""
        count, dtype = noise.shape[0], next(self.vae.parameters()).dtype
        if noise.separate and len(pixels) < count:
            pixels = pixels.repeat(count // len(pixels), 1, 1, 1)
        drawn = noise(len(pixels))
        parts = [
            self.vae.encode(part.to(self.device, dtype), eps.to(self.device, dtype)).float()
            for part, eps in zip(pixels.split(1), drawn.split(1), strict=True)
        ]
        return torch.cat(parts).repeat(count // len(parts), 1, 1, 1)

    def _first(
        self,
        start: Tensor | None,
        steps: list,
        first: int,
        choice: Choice,
        noise: Noise,
        latents: Tensor | None,
    ) -> Tensor:
        """x at the first level: noise alone, or α x₀ + σ ε from the image's latents."""
        if first == len(steps):
            return start
        eps = (noise() if latents is None else latents.float()).to(self.device)
        if start is None:
            return eps * first_noise_scale(self.scheduler, choice.name, steps)
        level = steps[first][0]
        return level.alpha * start + level.sigma * eps


def repeat(texts: list[str], count: int) -> list[str]:
    """Each text ``count`` times in a row."""
    return [text for text in texts for _ in range(count)]
