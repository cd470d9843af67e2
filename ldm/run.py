"""The run: a request and a model → tensors → steps → pictures.

    *_, last = stream(model, Request("a red car", seed=1))
    last.output.images[0]

``stream`` checks the request against the model, reads the pictures and encodes the texts
(``prepare``); the iterator that it returns then computes one step at a time (``steps_of``).

Source: Rombach et al. 2022, figure 3: the diffusion runs in the autoencoder's latent space; of
models without an autoencoder, in that of the pixels (Ho et al. 2020).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.classes.guidance import with_classifier
from ldm.denoiser import Denoiser
from ldm.errors import ArgumentError
from ldm.fast.deepcache import DeepCache
from ldm.fast.graphs import Graphs
from ldm.fast.time_cache import expect_times
from ldm.guidance import Guidance, classifier_free
from ldm.images import load_layer, to_pil
from ldm.images.depth import read_depth
from ldm.images.inputs import expand, fit_size, pictures_to_tensor, read_pictures
from ldm.images.masks import THRESHOLD, shrink_masks, to_masks
from ldm.latents import decode_latents, encode_means, encode_pictures
from ldm.loading.compatibility import nonfinite_error
from ldm.loading.model import Model
from ldm.loading.tasks import check_task, image_scale, image_strength
from ldm.output import Output
from ldm.record import with_records
from ldm.request import EMBEDDINGS, Request
from ldm.samplers import (
    Choice,
    Denoised,
    NewMethod,
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
from ldm.scheduler import CLEAN, Level
from ldm.techniques.inpainting import Blend, paste, unchanged
from ldm.techniques.tiling import P, T, tiled
from ldm.text.conditioning import (
    AESTHETIC_SCORE,
    NEGATIVE_AESTHETIC_SCORE,
    Prompted,
    encode_prompts,
    negative_for_each,
    time_ids,
)
from ldm.text.embeddings import use_embeddings
from ldm.text.lora_tags import refuse_tags
from ldm.unet import UNet


@dataclass
class Progress:
    """What ``Pipeline.stream`` yields after each step; the last one has the ``output``."""

    step: int  # steps done
    steps: int  # steps of this run: image-to-image skips some
    latents: Tensor  # (B, C, h, w), float32, unit scale: x at the level reached
    x0: Tensor  # (B, C, h, w): the model's current estimate of the clean latents
    output: Output | None = None
    t: float = 0.0  # the timestep that the step began at


@dataclass(frozen=True, eq=False)
class SamplingPlan:
    """The sampler and the steps of a run."""

    choice: Choice
    strength: float | None  # how much of the image is redrawn; None without one
    steps: list[Pair]  # (from, to) levels of the whole plan, noisiest first
    first: int  # index of the first that is run: not 0 if the run starts from an image
    stop: int  # index after the last that is run
    done: int  # how many steps another model has run before
    new_method: NewMethod

    @property
    def run(self) -> list[Pair]:
        """The steps that are run."""
        return self.steps[self.first : self.stop]

    @property
    def end(self) -> Level:
        """The level at which x is after the run."""
        return CLEAN if self.stop == len(self.steps) else self.steps[self.stop][0]


@dataclass(frozen=True, eq=False)
class Canvas:
    """The size to draw, and the image to start from."""

    height: int
    width: int
    pixels: Tensor | None = None  # (b, C, H, W) in [-1, 1], b = 1 or B: the image
    masks: Tensor | None = None  # (b, 1, H, W) in [0, 1]: 1 where it is drawn anew
    depth: Tensor | None = None  # (b, 1, h, w) in [-1, 1]: 1 is near


@dataclass(frozen=True, eq=False)
class Run:
    """A request that was prepared for a model: everything that the steps are computed from."""

    model: Model
    request: Request
    scale: float  # of classifier-free guidance
    guidance: Guidance
    schedule: SamplingPlan
    canvas: Canvas
    noise: Noise
    prompted: list[Prompted]  # of each picture
    cache: DeepCache | None

    def tiled(self, function: Callable[P, T], *modules: torch.nn.Module) -> Callable[P, T]:
        """Wrap ``function``: if tiles are drawn, the modules' convolutions wrap around."""
        return tiled(function, *modules) if self.request.tiling else function

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (b, C, H, W) to scaled latents (B, C, h, w)."""
        encode = self.tiled(encode_pictures, self.model.vae)
        return encode(self.model.vae, pixels, self.noise, self.model.device)

    def output(self, result: Tensor) -> Output:
        """Convert latents, or pixels in [-1, 1], to the request's ``output_type``."""
        request, seeds = self.request, self.noise.seeds
        prompts = [prompt for prompt in request.prompts for _ in range(request.repeats)]
        if request.output_type == "pil":
            choice = self.schedule.choice
            pictures = with_records(self.model, request, choice, to_pil(result), seeds)
            return Output([*pictures], seeds, prompts)
        if request.output_type == "latent":
            return Output(result, seeds, prompts)
        pixels = result / 2 + 0.5
        if request.output_type == "np":
            return Output(pixels.permute(0, 2, 3, 1).float().cpu().numpy(), seeds, prompts)
        return Output(pixels, seeds, prompts)


def stream(model: Model, request: Request) -> Iterator[Progress]:
    """Draw a request, yielding after every step; the last ``Progress`` holds the ``output``.

    Raises ArgumentError for what this model cannot draw: at the call, not at the first step, and
    before anything is computed.
    """
    return steps_of(prepare(model, request))


# Before anything is computed


def prepare(model: Model, request: Request) -> Run:
    """Check a request against a model, read its pictures and encode its texts."""
    scale = request.guidance_scale
    scale = model.defaults.guidance_scale if scale is None else scale
    check_task(model, request)
    guidance = classifier_free(
        scale,
        request.guidance_rescale,
        request.guidance_interval,
        image_scale(model, request.image_guidance_scale),
    )
    schedule = make_schedule(model, request)
    canvas = read_canvas(model, request)
    noise = make_noise(model, request, canvas)
    prompted, labels = make_conditioning(model, request, schedule, canvas, scale > 1)
    expect_times(model.unet, [start.t for start, _ in schedule.run])
    cache = None
    if (request.deep_cache, request.deep_cache_branch) != (1, 0):
        cache = DeepCache(model.unet, request.deep_cache, request.deep_cache_branch)
    guidance = with_classifier(
        guidance,
        model.classifier,
        labels,
        request.classifier_scale,
        model.defaults.classifier_scale,
        (canvas.height, canvas.width),
    )
    return Run(model, request, scale, guidance, schedule, canvas, noise, prompted, cache)


def choose_sampler(model: Model, sampler: str | None, schedule: str | None = None) -> Choice:
    """Return the sampler and schedule of names as in a request; None is the model's own."""
    choice = choose(model.scheduler.config, sampler, schedule)
    return choice._replace(schedule="ays_xl") if model.xl and choice[1] == "ays" else choice


def plan_levels(
    model: Model, choice: Choice, n: int | None, strength: float | None, masked: bool
) -> tuple[list[Pair], int]:
    """Return the (from, to) levels of n steps, and the index of the first that is run.

    See ``Pipeline.schedule``; ``n`` is None for the model's own number.
    """
    n = model.defaults.num_inference_steps if n is None else n
    first = 0 if strength is None else start_index(n, strength)
    reads_scale = model.unet.config.time_cond_proj_dim is not None
    if strength and reads_scale and choice == ("lcm", "normal") and not masked:
        # diffusers' pipeline for these models runs all n steps, below the strength.
        return lcm_levels(model.scheduler, n, "", strength), 0
    return plan(model.scheduler, choice.name, n, choice.schedule), first


def make_schedule(model: Model, request: Request) -> SamplingPlan:
    """Choose the sampler and its levels."""
    choice = choose_sampler(model, request.sampler, request.schedule)
    masked = request.mask_image is not None
    n, strength = request.num_inference_steps, image_strength(model, request)
    start, end = request.denoising_start, request.denoising_end
    steps, first = plan_levels(model, choice, n, strength if start is None else None, masked)
    stop, done = len(steps), 0
    train_steps = model.scheduler.config.num_train_timesteps
    if start is not None:
        left_out = 0 if strength is None else start_index(len(steps), strength)
        first = count_steps(steps, start, train_steps)
        done = max(first - left_out, 0)
    if end is not None:
        stop = count_steps(steps, end, train_steps)
    if first >= stop and not (start is None and end is None):
        given = {"denoising_start": start, "denoising_end": end, "strength": strength}
        names = ", ".join(f"{name} {value}" for name, value in given.items() if value is not None)
        raise ArgumentError(f"no step of {len(steps)} is left with {names}; change that")
    new_method = bind(model.scheduler, choice.name, request.eta, steps)
    return SamplingPlan(choice, strength, steps, first, stop, done, new_method)


def count_steps(steps: list[Pair], fraction: float, train_steps: int) -> int:
    """Count the steps of a run before a fraction of it, as diffusers does.

    They begin at a timestep of at least (1 − fraction) T.
    """
    cutoff = round(train_steps - fraction * train_steps)
    return sum(level.t >= cutoff for level, _ in steps)


def read_canvas(model: Model, request: Request) -> Canvas:
    """Load the image and the mask, if given, at the size to draw."""
    texts, repeats = len(request.prompts), request.repeats
    pictures = read_pictures(request.image, "image", texts, repeats)
    handed = None if request.denoising_start is None else request.latents
    own = model.default_size() if handed is None else latents_size(model, handed)
    size = fit_size(request.height, request.width, pictures, own, model.vae.config.scale)
    if pictures is None:
        return Canvas(*size)
    model.need_encoder()
    pixels = pictures_to_tensor(pictures, *size, model.vae.config.in_channels)
    layers = read_pictures(request.mask_image, "mask_image", texts, repeats, load_layer)
    masks = None if layers is None else to_masks(layers, pictures, *size, request.mask_blur)
    depth = None
    if request.depth_map is not None:
        depth = read_depth(request.depth_map, texts, repeats, size, model.vae.config.scale)
    return Canvas(*size, pixels, masks, depth)


def latents_size(model: Model, latents: Tensor) -> tuple[int, int]:
    """Return the (height, width) in pixels of latents (B, C, h, w)."""
    if latents.ndim != 4:
        raise ArgumentError(f"latents has {latents.ndim} dimensions; expected (B, C, h, w)")
    height, width = latents.shape[2:]
    return height * model.vae.config.scale, width * model.vae.config.scale


def make_noise(model: Model, request: Request, canvas: Canvas) -> Noise:
    """Seed the noise of every picture."""
    factor = model.vae.config.scale
    channels = model.vae.config.latent_channels
    noise = Noise(
        (request.count, channels, canvas.height // factor, canvas.width // factor),
        request.seed,
        request.generator,
        request.variation_seed,
        request.variation_strength,
    )
    if request.denoising_start is not None and request.latents is None:
        raise ArgumentError(
            "denoising_start continues a run; give its latents, drawn with denoising_end and "
            'output_type="latent"'
        )
    if request.latents is not None and tuple(request.latents.shape) != noise.shape:
        raise ArgumentError(
            f"latents has the shape {tuple(request.latents.shape)}; expected {noise.shape}"
        )
    return noise


def make_conditioning(
    model: Model, request: Request, schedule: SamplingPlan, canvas: Canvas, guided: bool
) -> tuple[list[Prompted], list[int | None]]:
    """Return the conditioning of each picture, and its class if the model has no text."""
    prompts = request.prompts
    negatives = negative_for_each(request.negative_prompt, prompts)
    for name, texts in (("prompt", prompts), ("negative prompt", negatives)):
        for text in texts:
            refuse_tags(text, name)
    labels: list[int | None] = []
    if model.classes is not None:
        if request.clip_skip:
            model.need_text("clip_skip is of a text encoder")
        if any(getattr(request, name) is not None for name in EMBEDDINGS):
            model.need_text("embeddings are of a text encoder")
        prompted = model.classes.prompted(prompts, negatives, guided, model.device)
        labels = [model.classes.read(prompt) for prompt in prompts]
    else:
        zeros = request.negative_prompt is None and model.force_zeros_for_empty_prompt
        continued = request.steps_before > 0
        prompted = encode_prompts(
            model.text_models,
            prompts,
            None if zeros else negatives,
            max(len(schedule.run), 1) if continued else len(schedule.steps),
            request.clip_skip,
            model.xl,
            size_ids(model, canvas) if model.xl else None,
            request.steps_before,
        )
        prompted = use_embeddings(
            prompted,
            request.prompt_embeds,
            request.negative_prompt_embeds,
            request.pooled_prompt_embeds,
            request.negative_pooled_prompt_embeds,
            zeros,
        )
    each = range(request.repeats)
    return [one for one in prompted for _ in each], [label for label in labels for _ in each]


def size_ids(model: Model, canvas: Canvas) -> tuple[Tensor, Tensor]:
    """Return the sizes that SDXL is conditioned on: for the prompts, and for negative ones."""
    scores = (AESTHETIC_SCORE, NEGATIVE_AESTHETIC_SCORE)
    rows = [time_ids(canvas.height, canvas.width, model.time_ids, score) for score in scores]
    return torch.tensor(rows[0], device=model.device), torch.tensor(rows[1], device=model.device)


# Step by step


@dataclass(frozen=True, eq=False)
class Start:
    """What the steps of a run begin with."""

    x: Tensor  # (B, C, h, w) at the first level
    image: Tensor | None  # the latents of the image
    eps: Tensor | None  # the first noise


@torch.no_grad()
def steps_of(run: Run, start: Start | None = None) -> Iterator[Progress]:
    """Compute a run step by step, from a ``start`` of its own or that of another run."""
    model, canvas, steps, noise = run.model, run.canvas, run.schedule.run, run.noise
    start = make_start(run) if start is None else start
    if start.image is not None and not steps:
        yield Progress(0, 0, start.image, start.image, image_itself(run, start.image))
        return
    known = conditions(run)
    after: Callable[[Tensor, Level], Tensor] = unchanged
    if canvas.pixels is not None and canvas.masks is not None:
        shown, after = keep_known_part(run, canvas.pixels, canvas.masks, start)
        known = shown if known is None else known
    denoise = make_denoiser(run, known)
    for x, index, x0 in sample(
        run.schedule.new_method, denoise, start.x, steps, lambda: noise().to(model.device), after
    ):
        progress = Progress(index + 1, len(steps), x, x0, t=steps[index][0].t)
        if run.cache:
            run.cache.next_step()
        last = progress.step == progress.steps
        # Only at the ends: on a GPU every check of values makes the CPU wait.
        if (index == 0 or last) and not x0.isfinite().all():
            raise nonfinite_error(model.parts)
        if last:
            progress.output = finish(run, x)
        yield progress


def make_denoiser(run: Run, known: Tensor | None) -> Callable[[Tensor, Level, int], Denoised]:
    """Compose the U-Net, the texts and the guidance of a run.

    known: what the U-Net reads beside x, for inpainting, edits or depth.
    """
    model = run.model
    reads_scale = model.unet.config.time_cond_proj_dim is not None
    denoiser = Denoiser(
        choose_unet(run),
        model.scheduler,
        run.prompted,
        run.guidance,
        known=known,
        embedded_scale=run.scale if reads_scale else None,
        listener=model.listener,
        device=model.device,
        steps_done=run.schedule.done,
    )
    return run.tiled(denoiser, *filter(None, (model.unet, model.classifier)))


def choose_unet(run: Run) -> UNet | DeepCache | Graphs:
    """Return what computes the U-Net of a run."""
    # A recording does not include what changes the layers from step to step.
    plain = run.cache is None and not run.request.tiling and run.model.listener is None
    return (run.model.optimized.graphs if plain else run.cache) or run.model.unet


def encode_start(run: Run) -> Tensor | None:
    """Encode the image that the run starts from; None if nothing needs it."""
    whole = (run.model.inpaints or run.model.edits) and run.schedule.strength == 1
    handed = run.request.denoising_start is not None and run.canvas.masks is None
    return None if run.canvas.pixels is None or whole or handed else run.encode(run.canvas.pixels)


@torch.no_grad()
def make_start(run: Run) -> Start:
    """Make x at the first level: noise alone, α x₀ + σ ε from the image's latents, or as given."""
    model, schedule, given = run.model, run.schedule, run.request.latents
    image = encode_start(run)  # the order of the draws of noise is diffusers'
    if image is not None and not schedule.run:
        return Start(image, image, None)
    if run.request.denoising_start is not None and given is not None:
        eps = None if run.canvas.masks is None else run.noise.first().to(model.device)
        return Start(given.float().to(model.device), image, eps)
    eps = (run.noise.first() if given is None else given.float()).to(model.device)
    if image is None or (run.canvas.masks is not None and schedule.strength == 1):
        scale = first_noise_scale(model.scheduler, schedule.choice.name, schedule.steps)
        return Start(eps * scale, image, eps)
    level = schedule.run[0][0]
    return Start(level.alpha * image + level.sigma * eps, image, eps)


def conditions(run: Run) -> Tensor | None:
    """Return what a U-Net for edits or depth reads beside x: (B, C', h, w); None for others."""
    model, count = run.model, run.request.count
    if run.canvas.depth is not None:
        return expand(run.canvas.depth, count).to(model.device)
    if model.edits and run.canvas.pixels is not None:
        return run.tiled(encode_means, model.vae)(model.vae, run.canvas.pixels, count, model.device)
    return None


def keep_known_part(
    run: Run, pixels: Tensor, masks: Tensor, start: Start
) -> tuple[Tensor | None, Callable[[Tensor, Level], Tensor]]:
    """Return how to keep what is outside of the masks.

    That is what an inpainting U-Net reads beside x, and what to do after each step of other models.
    """
    anew = masks >= THRESHOLD
    small = shrink_masks(anew.float(), run.model.vae.config.scale)
    small = expand(small, run.request.count).to(run.model.device)
    # The encoder draws noise; diffusers does so for all models, but a run that goes on draws on.
    if run.model.inpaints or run.request.denoising_start is None:
        shown = run.encode(pixels * ~anew)
    if run.model.inpaints:
        return torch.cat([small, shown], dim=1), unchanged
    # Only an inpainting model starts from noise without the image.
    assert start.image is not None and start.eps is not None
    return None, Blend(start.image, start.eps, small, run.schedule.run, run.schedule.end)


def image_itself(run: Run, start: Tensor) -> Output:
    """Return the output for a strength of 0: the image, or its latents."""
    pixels = run.canvas.pixels
    if pixels is None or run.request.output_type == "latent":
        return run.output(start)
    return run.output(expand(pixels, run.request.count))


def finish(run: Run, x: Tensor) -> Output:
    """Decode the latents, and put back what the masks keep."""
    request, canvas = run.request, run.canvas
    if request.output_type == "latent":
        return run.output(x)
    drawn = run.tiled(decode_finite, run.model.vae)(run.model, x)
    if canvas.pixels is not None and canvas.masks is not None and request.paste_back:
        drawn = paste(drawn, canvas.pixels, canvas.masks)
    return run.output(drawn)


@torch.no_grad()
def decode_finite(model: Model, x: Tensor) -> Tensor:
    """Decode scaled latents (B, C, h, w) to pixels (B, 3, 8h, 8w), float32 in [-1, 1].

    Raises CheckpointError for a result that is not finite in any number format, instead of
    returning a black picture.
    """
    pixels = decode_latents(model.vae, x, model.device)
    if pixels is None:
        raise nonfinite_error(model.parts)
    return pixels
