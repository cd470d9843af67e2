"""The pipeline: text, or text and an image, to pictures.

    pipe = Pipeline.from_pretrained()
    pipe("a red car", seed=1).images[0].save("car.png")

Source: Rombach et al. 2022, figure 3: the diffusion runs in the autoencoder's latent space; of
models without an autoencoder, in that of the pixels (Ho et al. 2020).
"""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ldm import latents as codec
from ldm.adapters.lora import Lora, Loras
from ldm.adapters.textual_inversion import TextualInversions
from ldm.checkpoints.source import find_model
from ldm.classes.classifier import Classifier
from ldm.classes.guidance import guided_by
from ldm.classes.labels import Classes
from ldm.clip import CLIPTextEncoder
from ldm.config import SchedulerConfig
from ldm.config.generation import Defaults
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu, slow_down, speed_up
from ldm.fast.compiled import compile_regions, uncompile
from ldm.fast.deepcache import DeepCache
from ldm.fast.graphs import Graphs
from ldm.fast.int8 import quantize
from ldm.fast.offload import Offload
from ldm.fast.time_cache import expect_times
from ldm.guidance import Denoiser, Guidance, Hear
from ldm.images import to_pil
from ldm.images.inputs import (
    Picture,
    check_numbers,
    expand,
    fit_size,
    read_pictures,
    to_pixels,
)
from ldm.images.masks import HALF, shrink_masks, to_masks
from ldm.latents import Codec, Pixels
from ldm.loading.compatibility import check_parts, nonfinite_error
from ldm.loading.devices import choose_device, choose_dtype
from ldm.loading.folder import load_folder, save_folder
from ldm.loading.single_file import load_file, load_vae, names_of, save_file
from ldm.samplers import (
    Choice,
    Pair,
    bind,
    choose,
    first_noise_scale,
    plan,
    sample,
    start_index,
)
from ldm.samplers.noise import Noise
from ldm.samplers.spacing import lcm_levels
from ldm.scheduler import DDPMScheduler
from ldm.techniques.attention_maps import AttentionMaps, watch_attention
from ldm.techniques.inpainting import Blend, paste, unchanged
from ldm.techniques.tiling import tiled
from ldm.text.conditioning import (
    AESTHETIC_SCORE,
    NEGATIVE_AESTHETIC_SCORE,
    TextModel,
    encode_prompts,
    spread,
    time_ids,
)
from ldm.text.tokenizer import CLIPTokenizer
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

if TYPE_CHECKING:
    from PIL.Image import Image

STRENGTH = 0.8


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
    """The parts of a model, composed: of the Stable Diffusion family, or one that draws pixels.

    Which family it is shows in the parts: in what the U-Net is told and how many channels it reads.
    """

    def __init__(
        self,
        vae: AutoencoderKL | None,
        text_encoder: CLIPTextEncoder | None,
        tokenizer: CLIPTokenizer | None,
        unet: UNet,
        scheduler: DDPMScheduler | None = None,
        defaults: Defaults | None = None,
        *,
        text_encoder_2: CLIPTextEncoder | None = None,
        tokenizer_2: CLIPTokenizer | None = None,
        force_zeros_for_empty_prompt: bool = False,
        id2label: Mapping[str, str] | None = None,
        classifier: Classifier | None = None,
    ) -> None:
        """Without a ``scheduler``: the noise schedule of Stable Diffusion, and DDPM as sampler.

        vae, text_encoder, tokenizer: None where the U-Net draws pixels, without a text.
        SDXL has a second text encoder; its refiner, only that one.
        force_zeros_for_empty_prompt: an absent negative prompt is zeros, not the states of "".
        id2label: the names of a model's classes, "0" first; see ``ldm.classes.labels``.
        classifier: one that knows noisy pictures, for ``classifier_scale``.
        Raises CheckpointError for parts that do not fit each other.
        """
        self.unet = unet
        self.vae: Codec = vae or Pixels(unet.config.in_channels)
        self.text_encoder, self.tokenizer = text_encoder, tokenizer
        self.text_encoder_2, self.tokenizer_2 = text_encoder_2, tokenizer_2
        self.force_zeros_for_empty_prompt = force_zeros_for_empty_prompt
        self.id2label, self.classifier = id2label, classifier
        for network in filter(None, (unet, vae, classifier)):
            adapt_to_cpu(network)
        config = (
            scheduler.config
            if scheduler
            else SchedulerConfig(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
        )
        if not isinstance(self.vae, Pixels):
            # Old Stable Diffusion's configs lack both; diffusers' pipeline always sets them so.
            config = replace(config, steps_offset=1, clip_sample=False)
        self.scheduler = DDPMScheduler(config)
        self.xl = unet.config.addition_embed_type is not None
        self.inversions = TextualInversions(
            {
                part: TextModel(words, encoder)
                for part, words, encoder in (
                    ("text_encoder", tokenizer, text_encoder),
                    ("text_encoder_2", tokenizer_2, text_encoder_2),
                )
                if encoder is not None
            }
        )
        encoders = [model.encoder.config for model in self.text_models]
        judge = classifier and classifier.config
        check_parts(self.vae.config, unet.config, config, encoders, judge, bool(id2label))
        self.inpaints = unet.config.in_channels > self.vae.config.latent_channels
        self.time_ids = unet.config.time_ids(encoders[-1].projection_dim) if encoders else 0
        self.classes: Classes | None = None  # of a model without text
        self.defaults = defaults or Defaults.of(unet.config, config)
        if not encoders:
            self.classes = Classes.of(unet.config, judge, id2label)
        if self.classes and self.classes.no_class is None:  # nothing to guide away from
            self.defaults = replace(self.defaults, guidance_scale=1.0)

        named = {"unet": unet, "text_encoder": text_encoder, "text_encoder_2": text_encoder_2}
        self._hear: Hear | None = None  # while explain() looks on
        self._graphs: Graphs | None = None
        self._offload: Offload | None = None
        self.int8 = False  # whether the U-Net computes in 8 bits
        self.loras = Loras(
            {name: part for name, part in named.items() if part is not None}, names_of(unet.config)
        )

    @classmethod
    def from_pretrained(
        cls,
        model: str | Path | None = None,
        *,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        variant: str | None = None,
        vae: str | Path | None = None,
        prediction_type: str | None = None,
        ema: bool = False,
        cache_dir: str | None = None,
        revision: str | None = None,
        token: str | None = None,
        local_files_only: bool = False,
        int8: bool = False,
    ) -> Pipeline:
        """Load a model: None is the built-in one, else a folder, a single file or a hub id.

        device: None takes CUDA where there is one, else the CPU.
        dtype: of the U-Net and the text encoder; None chooses by the device (see
        ``ldm.loading.devices``), "auto" keeps what the files hold. The VAE is float32 where float16
        is chosen.
        variant: "fp16" prefers files named so; the plain ones do where there are none.
        vae: the folder or file of another VAE to use.
        prediction_type: "epsilon", "v_prediction" or "sample"; None as the model says.
        ema: take the averaged copy of the U-Net's weights that full training checkpoints hold.
        int8: as of ``optimize``, which it does.
        Raises CheckpointError for a model that is missing, broken or not supported.
        """
        path = find_model(
            model,
            cache_dir=cache_dir,
            revision=revision,
            token=token,
            local_files_only=local_files_only,
            variant=variant,
        )
        device = choose_device(device)
        dtype = None if dtype == "auto" else choose_dtype(dtype, device)
        if path.is_file():
            parts = load_file(path, dtype, device, prediction_type, ema)
        elif ema:
            raise ArgumentError(f"{path} is a folder; only single files hold a copy for ema")
        else:
            parts = load_folder(path, dtype, device, variant, prediction_type)
        if vae is not None:
            old = parts["vae"]
            if old is None:
                raise ArgumentError(f"{path} draws pixels and has no VAE; leave vae out")
            to = next(old.parameters()).dtype
            parts["vae"] = load_vae(Path(vae).expanduser(), old.config, to, device)
        pipe = cls(**parts)
        return pipe.optimize(int8=True) if int8 else pipe

    @property
    def parts(self) -> dict[str, Any]:
        """The arguments that make this pipeline."""
        names = (
            "vae unet scheduler defaults force_zeros_for_empty_prompt "
            "text_encoder tokenizer text_encoder_2 tokenizer_2 id2label classifier"
        )
        return {name: getattr(self, name) for name in names.split()}

    def save_pretrained(self, folder: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a folder that diffusers loads as a pipeline. None keeps the dtype.

        LoRAs that are on are merged into the weights; words that were loaded are left out.
        """
        save_folder(self.parts, Path(folder), dtype)

    def save_single_file(self, path: str | Path, dtype: torch.dtype | None = None) -> None:
        """Write a .safetensors file under the original names, as ``save_pretrained``.

        Raises CheckpointError for a model whose sizes are of no known family.
        """
        save_file(self.parts, Path(path), dtype)

    @property
    def text_models(self) -> list[TextModel]:
        """The text encoders with their tokenizers, which know the words loaded."""
        return list(self.inversions.models.values())

    def load_textual_inversion(self, path: str | Path, token: str | None = None) -> str:
        """Learn a new word from a file; returns the word, to be used in prompts.

        It is ``token``, else what the file calls it, else the file's name.
        Raises CheckpointError for a file that does not fit, ArgumentError for a word in use.
        """
        self._need_text("a textual inversion is a word of it")
        return self.inversions.load(path, token).word

    def unload_textual_inversion(self) -> None:
        """Forget all words that were loaded."""
        self.inversions.unload()

    def load_lora_weights(
        self, path: str | Path, adapter_name: str | None = None, scale: float = 1.0
    ) -> Lora:
        """Put a LoRA file of kohya, peft or diffusers onto the model, beside those that are there.

        Returns what was read; its ``summary`` says how many keys found their place.
        Raises CheckpointError where none does, ArgumentError for a name that is in use.
        """
        self._need_text("LoRAs are for the Stable Diffusion family")
        return self.loras.load(path, adapter_name, scale)

    def set_adapters(
        self, adapter_names: str | Sequence[str], scales: float | Sequence[float] = 1.0
    ) -> None:
        """Use these of the loaded LoRAs, with these scales, and no others."""
        names = [adapter_names] if isinstance(adapter_names, str) else list(adapter_names)
        each = [scales] * len(names) if isinstance(scales, int | float) else list(scales)
        if len(each) != len(names):
            raise ArgumentError(f"there are {len(each)} scales for {len(names)} adapter_names")
        self.loras.set_scales(dict(zip(names, each, strict=True)))

    def unload_lora_weights(self) -> None:
        """Take all LoRAs off; the weights are those from before, to the bit."""
        self.loras.unload()

    def optimize(
        self,
        on: bool = True,
        *,
        compile: bool = False,
        offload: bool = False,
        int8: bool = False,
    ) -> Pipeline:
        """Have the parts compute faster, or, off, as before; returns itself.

        The results are the same but for rounding; see ``ldm.fast``. On a CPU, weights are packed:
        they stay single in memory, and whatever reads or changes them (LoRA, ``save_pretrained``,
        ``state_dict``) sees them as they are. On CUDA, steps are replayed as recorded.
        compile: ``torch.compile`` the repeated blocks, which takes up to minutes at the first call,
        in place of the packing.
        offload: keep on the GPU only the part that computes; slower, in less memory, unrecorded.
        int8: on a CPU, compute most of the U-Net in 8-bit integers: another picture, near the
        exact one. What it gains depends on the processor: see ``ldm.fast.int8``.
        Raises ArgumentError for what does not work here or together.
        """
        device = self.device
        if on and offload and device.type == "cpu":
            raise ArgumentError("offload keeps parts off the GPU, but the device is the CPU")
        if on and int8 and device.type != "cpu":
            raise ArgumentError(f"int8 is for CPUs, but the device is {device}; leave it out")
        if on and int8 and compile:
            raise ArgumentError("int8 and compile exclude each other; give one of them")
        if self._offload:
            self._offload.end()
        self._offload = self._graphs = None
        self.int8 = False
        for part in (self.unet, self.vae):
            slow_down(part)
            uncompile(part)
        if not on:
            return self
        for part in (self.unet, self.vae):
            if compile:
                compile_regions(part)
            elif device.type == "cpu":
                speed_up(part)
            if device.type == "cuda":  # its convolutions of half precision compute so
                part.to(memory_format=torch.channels_last)
        if int8:
            quantize(self.unet)
            self.int8 = True
        if offload:
            parts = [self.unet, self.vae, self.classifier, *(m.encoder for m in self.text_models)]
            self._offload = Offload([part for part in parts if part], device)
        elif device.type == "cuda":
            self._graphs = Graphs(self.unet)
        return self

    @property
    def device(self) -> torch.device:
        """Where the parts compute."""
        return self._offload.device if self._offload else next(self.unet.parameters()).device

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
        image: Picture | Sequence[Picture] | None = None,
        mask_image: Picture | Sequence[Picture] | None = None,
        mask_blur: float = 4.0,
        paste_back: bool = True,
        strength: float | None = None,
        height: int | None = None,
        width: int | None = None,
        num_inference_steps: int | None = None,
        guidance_scale: float | None = None,
        guidance_rescale: float = 0.0,
        guidance_interval: tuple[float, float] = (0.0, math.inf),
        num_images_per_prompt: int = 1,
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variation_seed: int | None = None,
        variation_strength: float = 0.0,
        latents: Tensor | None = None,
        deep_cache: int = 1,
        deep_cache_branch: int = 0,
        tiling: bool = False,
        sampler: str | None = None,
        schedule: str | None = None,
        eta: float = 0.0,
        clip_skip: int = 1,
        classifier_scale: float | None = None,
        steps_before: int = 0,
        output_type: str = "pil",
    ) -> Iterator[Progress]:
        """Draw pictures, yielding after every step; the last ``Progress`` holds the ``output``.

        Args:
            prompt: one text or several; "" draws without a text. Words are weighted, joined and
                changed from step to step in the grammar of ``ldm.text.grammar``: brackets that are
                text are written ``\\(`` and ``\\[``. Steps count from the first that is run; in
                image-to-image, too, fractions are of all ``num_inference_steps``, as in A1111.
                Of a model without text: a class's name or number (see ``ldm.classes.labels``).
            negative_prompt: what to steer away from; one for all prompts, or one for each.
            image: where to start from (image-to-image): one for all prompts, or one for each.
            mask_image: which part of the image to draw anew (inpainting): white; like ``image``.
            mask_blur: pixels by which the mask's edge is softened, as in A1111.
            paste_back: whether pixels outside of the (blurred) mask are the image's, to the bit;
                else they are what the VAE makes of them, as in diffusers.
            strength: in [0, 1], how much of the image is redrawn:
                ``min(int(steps·strength), steps)`` steps run, but at least one (with LCM's models
                all of them, from a lower level of noise); 0 returns it.
                None is 0.8, and 1 with a mask.
            height, width: pixels, multiples of 8 where there is a VAE; None is the image's size,
                rounded down to such a multiple, without an image the model's own.
            num_inference_steps, guidance_scale: None as the model advises, else 50 and 7.5
                (XL: 50 and 5, LCM: 4 and 8.5, of pixels: see ``ldm.config.generation``) as in
                diffusers. Guidance is off for scales up to 1.
            guidance_rescale, guidance_interval: see ``ldm.guidance.Guidance``.
            num_images_per_prompt: pictures of each prompt.
            seed: picture i is drawn from seed + i, alone or in a batch; None picks one.
            generator: CPU generator(s) as in diffusers, in place of a seed: one for all, or each.
            variation_seed, variation_strength: in [0, 1], how far the first noise is turned towards
                another seed's; then all pictures have ``seed``, and variation_seed counts up.
            latents: the first noise (B, C, h, w) instead of drawing it.
            deep_cache: compute the coarse levels of the U-Net at every n-th step only: faster, and
                another picture; 3 is usual, 1 is off.
            deep_cache_branch: how many fine layers are computed at each step; see
                ``ldm.fast.deepcache``.
            tiling: a picture that can be laid beside itself without a seam.
            sampler: "ddpm", "ddim", "dpmpp_2m", … , diffusers' class or A1111's label of one, with
                or without a schedule ("dpmpp_2m_karras"); None as the model's
                ``scheduler_config.json`` says.
            schedule: how the levels of noise lie: "normal" (the sampler's own), "karras",
                "exponential", "sgm_uniform", "simple", "beta" or "ays"; None as the sampler's name
                or else the model's config says.
            eta: in [0, 1], noise that "ddim" adds.
            clip_skip: 1 takes the layer of the text encoder that the model was trained with, 2 the
                one before (as A1111 counts).
            classifier_scale: how much the model's classifier pushes towards the class (see
                ``ldm.classes.guidance``); 0 is off, None as the model advises, else 1.
            steps_before: steps of a pass that this call goes on from, for prompts that change:
                numbers of steps count from its first one, and fractions from 1 to 2 are of the
                steps that are run here ("hires fix" in A1111; see ``ldm.hires``).
            output_type: "pil", "pt" (float32 (B,3,H,W) in [0, 1]) or "latent" (scaled latents).

        Raises ArgumentError for an argument that cannot work: at once, not when the first step is
        asked for, and before anything is computed.
        """
        check_numbers(Pipeline.stream, locals())
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
        count = len(prompts) * num_images_per_prompt

        scale = self.defaults.guidance_scale if guidance_scale is None else guidance_scale
        guidance = Guidance(scale, guidance_rescale, guidance_interval)
        choice = self.choose_sampler(sampler, schedule)
        if strength is None:
            strength = STRENGTH if mask_image is None else 1.0
        steps, first = self.schedule(
            num_inference_steps,
            None if image is None else strength,
            sampler,
            schedule,
            masked=mask_image is not None,
        )
        step = bind(self.scheduler, choice.name, eta, steps)
        pixels = masks = None
        pictures = read_pictures(image, "image", len(prompts), num_images_per_prompt)
        factor = self.vae.config.scale
        height, width = fit_size(height, width, pictures, self.default_size(), factor)
        if pictures is not None:
            pixels = to_pixels(pictures, height, width, self.vae.config.in_channels)
        if mask_image is not None:
            if pictures is None:
                raise ArgumentError("mask_image says which part of an image to redraw; give image")
            drawn = read_pictures(mask_image, "mask_image", len(prompts), num_images_per_prompt)
            masks = to_masks(drawn, height, width, mask_blur)
        elif self.inpaints:
            raise ArgumentError("this is an inpainting model; give image and mask_image")
        noise = Noise(
            (count, self.vae.config.latent_channels, height // factor, width // factor),
            seed,
            generator,
            variation_seed,
            variation_strength,
        )
        if latents is not None and tuple(latents.shape) != noise.shape:
            raise ArgumentError(
                f"latents has the shape {tuple(latents.shape)}; expected {noise.shape}"
            )
        if steps_before < 0:
            raise ArgumentError(f"steps_before is {steps_before}; it must be at least 0")
        negatives = spread(negative_prompt, prompts)
        labels: list[int | None] = []
        if self.classes is not None:
            if clip_skip != 1:
                self._need_text("clip_skip is of a text encoder")
            guided = guidance.scale > 1
            prompted = self.classes.prompted(prompts, negatives, guided, self.device)
            labels = [self.classes.read(p) for p in prompts for _ in range(num_images_per_prompt)]
        else:
            zeros = negative_prompt is None and self.force_zeros_for_empty_prompt
            prompted = encode_prompts(
                self.text_models,
                prompts,
                None if zeros else negatives,
                max(len(steps) - first, 1) if steps_before else len(steps),
                clip_skip,
                self.xl,
                self._sizes(height, width),
                steps_before,
            )
        expect_times(self.unet, [start.t for start, _ in steps[first:]])
        cached = None
        if (deep_cache, deep_cache_branch) != (1, 0):
            cached = DeepCache(self.unet, deep_cache, deep_cache_branch)
        told = [one for one in prompted for _ in range(num_images_per_prompt)]
        advised = self.defaults.classifier_scale
        gradient = guided_by(self.classifier, labels, classifier_scale, advised, (height, width))

        encode, decode = codec.encode, self.decode
        if tiling:
            encode, decode = tiled(encode, self.vae), tiled(decode, self.vae)

        def finish(x: Tensor) -> Output:
            result = x if output_type == "latent" else decode(x)
            if masks is not None and paste_back and output_type != "latent":
                result = paste(result, pixels, masks)
            return self._output(result, noise, output_type)

        @torch.no_grad()
        def run() -> Iterator[Progress]:
            # The order of the draws is diffusers'.
            start = None
            if pixels is not None and not (self.inpaints and strength == 1):
                start = encode(self.vae, pixels, noise, self.device)
            inner = masks is not None and strength == 1  # starts from noise alone
            x_first, eps = self._first(
                None if inner else start, steps, first, choice, noise, latents
            )
            known, after = None, unchanged
            if masks is not None and first < len(steps):
                anew = masks >= HALF
                small = expand(shrink_masks(anew.float(), factor), count).to(self.device)
                hidden = pixels * ~anew
                shown = encode(self.vae, hidden, noise, self.device)
                if self.inpaints:
                    known = torch.cat([small, shown], dim=1)
                else:
                    after = Blend(start, eps, small, steps[first:])
            # A recording knows nothing of what is done to the layers from step to step.
            plain = cached is None and not tiling and self._hear is None
            unet = (self._graphs if plain else cached) or self.unet
            denoise = Denoiser(
                unet, self.scheduler, told, guidance, known, self._hear, gradient, self.device
            )
            if tiling:
                denoise.tell = tiled(denoise.tell, *filter(None, (self.unet, self.classifier)))
            progress = Progress(0, len(steps) - first, x_first, x_first)
            if progress.steps == 0:
                kept = start if output_type == "latent" else expand(pixels, count)
                yield replace(progress, output=self._output(kept, noise, output_type))
            for x, index, x0 in sample(
                step, denoise, x_first, steps[first:], lambda: noise().to(self.device), after
            ):
                progress = Progress(index + 1, len(steps) - first, x, x0)
                denoise.step = progress.step + 1
                if cached:
                    cached.next_step()
                last = progress.step == progress.steps
                # At the ends only: on a GPU every look at the values makes the CPU wait.
                if (index == 0 or last) and not x0.isfinite().all():
                    raise nonfinite_error(self.parts)
                if last:
                    progress.output = finish(x)
                yield progress

        return run()

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w) → pixels (B, 3, 8h, 8w), float32 in [-1, 1].

        See ``ldm.latents.decode``. Raises CheckpointError for what is not finite in any number
        format: no black picture is ever returned instead.
        """
        pixels = codec.decode(self.vae, latents, self.device)
        if pixels is None:
            raise nonfinite_error(self.parts)
        return pixels

    def preview(self, latents: Tensor) -> Tensor:
        """Scaled latents (B, C, h, w), such as ``Progress.x0`` → RGB (B, 3, h, w) in [0, 1].

        Without a decode (see ``ldm.techniques.preview``). Where the model's folder has no map of
        its own, the first call fits one, which takes some seconds with a large VAE.
        """
        return codec.preview(self.vae, latents, self.decode)

    @contextlib.contextmanager
    def explain(self) -> Iterator[AttentionMaps]:
        """Watch where each word looks while pictures are drawn.

        ``with pipe.explain() as attention:`` draw, then ``attention.words()``; see
        ``ldm.techniques.attention_maps``. What is drawn does not change; drawing takes a little
        longer.
        """
        self._need_text("there are no words to look for")
        before = self._hear
        with watch_attention(self.unet, self.text_models[0].tokenizer) as attention:
            self._hear = attention.expect
            try:
                yield attention
            finally:
                self._hear = before

    def _output(self, result: Tensor, noise: Noise, output_type: str) -> Output:
        """``result`` is latents where they are asked for, else pixels in [-1, 1]."""
        if output_type == "pil":
            return Output(to_pil(result), noise.seeds)
        return Output(result if output_type == "latent" else result / 2 + 0.5, noise.seeds)

    def choose_sampler(self, sampler: str | None, schedule: str | None = None) -> Choice:
        """The sampler and schedule of names as in ``stream``; None is the model's own."""
        choice = choose(self.scheduler.config, sampler, schedule)
        return choice._replace(schedule="ays_xl") if self.xl and choice[1] == "ays" else choice

    def schedule(
        self,
        num_inference_steps: int | None = None,
        strength: float | None = None,
        sampler: str | None = None,
        schedule: str | None = None,
        *,
        masked: bool = False,
    ) -> tuple[list[Pair], int]:
        """The (from, to) levels of a run, and the index of the first that is run.

        That is 0 unless ``strength`` in [0, 1] says that it starts from an image; with ``masked``,
        from a part of it. Raises ArgumentError for numbers that do not work.
        """
        n = num_inference_steps
        n = self.defaults.num_inference_steps if n is None else n
        choice = self.choose_sampler(sampler, schedule)
        first = 0 if strength is None else start_index(n, strength)
        told_scale = self.unet.config.time_cond_proj_dim is not None
        if strength and told_scale and choice == ("lcm", "normal") and not masked:
            # diffusers' pipeline for these models runs all n steps, below the strength.
            return lcm_levels(self.scheduler, n, "", strength), 0
        return plan(self.scheduler, choice.name, n, choice.schedule), first

    def _need_text(self, why: str) -> None:
        """Raise ArgumentError for a model without text."""
        if self.classes is not None:
            raise ArgumentError(f"this model reads no text: {why}")

    def _sizes(self, height: int, width: int) -> tuple[Tensor, Tensor] | None:
        """SDXL is also told the size to draw: for the prompts, and for the negative ones."""
        if not self.xl:
            return None
        scores = (AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE)
        rows = [time_ids(height, width, self.time_ids, score) for score in scores]
        return torch.tensor(rows[0], device=self.device), torch.tensor(rows[1], device=self.device)

    def _first(
        self,
        start: Tensor | None,
        steps: list[Pair],
        first: int,
        choice: Choice,
        noise: Noise,
        latents: Tensor | None,
    ) -> tuple[Tensor, Tensor | None]:
        """x at the first level: noise alone, or α x₀ + σ ε from the image's latents; and ε."""
        if first == len(steps):
            return start, None
        eps = (noise.first() if latents is None else latents.float()).to(self.device)
        if start is None:
            return eps * first_noise_scale(self.scheduler, choice.name, steps), eps
        level = steps[first][0]
        return level.alpha * start + level.sigma * eps, eps
