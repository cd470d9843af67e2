"""The preparation of a run: a request and a model → everything that the steps are computed from.

Nothing is drawn here: what a model cannot do is an error before anything is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ldm.classes.classifier import Classifier
from ldm.classes.guidance import with_classifier
from ldm.config.picture_readers import T2I_ADAPTER
from ldm.config.tasks import TASK_NAMES
from ldm.control import image_prompts
from ldm.control.control_lllite import ControlLLLite, Network
from ldm.control.features import AdapterUse, adapted_size, adapter_uses
from ldm.control.hints import Pictures, control_uses, hint_size, read_hints
from ldm.control.image_prompts import ImagePrompts, make_image_prompts
from ldm.control.steering import ControlUse
from ldm.control.t2i_adapter import T2IAdapter
from ldm.denoiser import Sharing
from ldm.errors import ArgumentError
from ldm.fast.deepcache import DeepCache
from ldm.fast.time_cache import KnownTimes, compute_times
from ldm.guidance import Guidance, classifier_free
from ldm.images import load_layer, to_pil
from ldm.images.depth import read_depth
from ldm.images.inputs import fit_size, pictures_to_tensor, read_pictures
from ldm.images.masks import to_masks
from ldm.latents import Codec, encode_pictures
from ldm.loading.model import Model
from ldm.loading.needed import check_memory
from ldm.loading.tasks import check_task, image_scale, image_strength
from ldm.output import Output
from ldm.output.record import with_records
from ldm.request import EMBEDDINGS, REFERENCE, Request
from ldm.samplers import (
    Choice,
    NewMethod,
    Pair,
    bind,
    choose,
    plan,
    start_index,
)
from ldm.samplers.noise import Noise
from ldm.samplers.spacing import lcm_levels
from ldm.scheduler import CLEAN, Level
from ldm.techniques.attention_maps import Watch, watches
from ldm.techniques.reference import Reference
from ldm.techniques.tiling import seamless
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
    latents: Tensor | None = None  # (B, C, h, w), scaled: the image, encoded already


@dataclass(frozen=True, eq=False)
class Run:
    """A request that was prepared for a model: everything that the steps are computed from.

    Attributes:
        unet, vae: the model's, or views of them that compute in this run's way.
        times: what the networks make of the times alone.
    """

    model: Model
    unet: UNet
    vae: Codec
    times: dict[object, KnownTimes]
    watches: list[Watch]
    request: Request
    scale: float  # of classifier-free guidance
    guidance: Guidance
    schedule: SamplingPlan
    canvas: Canvas
    noise: Noise
    prompted: list[Prompted]  # of each picture
    cache: DeepCache | None
    controls: list[ControlUse]
    adapters: list[AdapterUse]
    sharing: Sharing | None
    image_prompts: ImagePrompts | None

    def encode(self, pixels: Tensor) -> Tensor:
        """Encode pixels (b, C, H, W) to scaled latents (B, C, h, w)."""
        with self.model.turns.vae:
            return encode_pictures(self.vae, pixels, self.noise, self.model.device)

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


def prepare(model: Model, request: Request, latents: Tensor | None = None) -> Run:
    """Check a request against a model, read its pictures and encode its texts.

    latents: (B, C, h, w), scaled, of the size to draw: what to start from, in place of the image.
    """
    scale = request.guidance_scale
    scale = model.defaults.guidance_scale if scale is None else scale
    check_task(model, request)
    guidance = classifier_free(
        scale,
        request.guidance_rescale,
        request.guidance_interval,
        image_scale(model, request.image_guidance_scale),
    )
    strength = image_strength(model, request) if latents is None else request.strength
    schedule = make_schedule(model, request, strength)
    networks = model.used_controlnets(request.control_image is not None)
    shown = views(model, networks, request.tiling)
    hints, pictures, hinted = read_steering(model, request)
    canvas = replace(read_canvas(model, request, hinted), latents=latents)
    size = (canvas.height, canvas.width)
    controls = control_uses(shown.controlnets, request, hints, size)
    adapters = adapter_uses(shown.t2i_adapters, request, pictures, size)
    noise = make_noise(model, request, canvas)
    prompted, labels = make_conditioning(model, request, schedule, canvas, scale > 1)
    check_memory(model, request, size, prompted, scale > 1, networks)
    times = compute_times([model.unet, *networks.values()], [start.t for start, _ in schedule.run])
    watched = watches(model.unet, shown.unet)
    unet = watched[-1].unet if watched else shown.unet
    sharing = share_attention(model, unet, request, canvas, prompted)
    unet = unet if sharing is None else sharing.unet
    images = read_image_prompts(model, unet, request, noise, prompted, scale > 1)
    cache = None
    if (request.deep_cache, request.deep_cache_branch) != (1, 0):
        cache = DeepCache(unet, request.deep_cache, request.deep_cache_branch)
    guidance = with_classifier(
        guidance,
        shown.classifier,
        labels,
        request.classifier_scale,
        model.defaults.classifier_scale,
        size,
    )
    return Run(
        model,
        unet,
        shown.vae,
        times,
        watched,
        request,
        scale,
        guidance,
        schedule,
        canvas,
        noise,
        prompted,
        cache,
        controls,
        adapters,
        sharing,
        images,
    )


class Views(NamedTuple):
    """The networks of a run: a model's own, or views of them."""

    unet: UNet
    vae: Codec
    classifier: Classifier | None
    controlnets: Mapping[str, Network]
    t2i_adapters: Mapping[str, T2IAdapter]


def views(model: Model, networks: Mapping[str, Network], tiling: bool) -> Views:
    """Return a model's networks and these ControlNets; if tiles are drawn, views that wrap around.

    A ControlNet-LLLite's convolutions read no pixels past an edge.
    """
    classifier, adapters = model.classifier, model.t2i_adapters
    if not tiling:
        return Views(model.unet, model.vae, classifier, networks, adapters)
    return Views(
        seamless(model.unet),
        seamless(model.vae),
        None if classifier is None else seamless(classifier),
        {
            name: one if isinstance(one, ControlLLLite) else seamless(one)
            for name, one in networks.items()
        },
        {name: seamless(one) for name, one in adapters.items()},
    )


def read_steering(
    model: Model, request: Request
) -> tuple[list[Pictures | None], list[Pictures | None], tuple[int, int] | None]:
    """Load what ControlNets and T2I-Adapters read, and the (height, width) that it asks for.

    The size is None without a picture.
    """
    networks = model.used_controlnets(request.control_image is not None)
    hints = read_hints(networks, request)
    pictures = read_hints(model.t2i_adapters, request, T2I_ADAPTER)
    size = hint_size(hints) or adapted_size(model.t2i_adapters, hint_size(pictures))
    return hints, pictures, size


def read_image_prompts(
    model: Model,
    unet: UNet,
    request: Request,
    noise: Noise,
    prompted: list[Prompted],
    guided: bool,
) -> ImagePrompts | None:
    """Encode what IP-Adapters read; None without one. unet: the model's, or a view of it."""
    if not model.ip_adapters:
        image_prompts.refuse_unused(request)
        return None
    negative = guided or model.edits or any(one.combined for one in prompted)
    return make_image_prompts(
        unet, model.ip_adapters, request, noise.shape[2:], model.vae.config.scale, negative
    )


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


def make_schedule(model: Model, request: Request, strength: float | None) -> SamplingPlan:
    """Choose the sampler and its levels. strength: how much of the image is redrawn."""
    choice = choose_sampler(model, request.sampler, request.schedule)
    masked = request.mask_image is not None
    n = request.num_inference_steps
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


def read_canvas(model: Model, request: Request, hint: tuple[int, int] | None = None) -> Canvas:
    """Load the image and the mask, if given, at the size to draw.

    hint: the (height, width) of what a ControlNet or a T2I-Adapter reads, which decides if nothing
        else does.
    """
    texts, repeats = len(request.prompts), request.repeats
    pictures = read_pictures(request.image, "image", texts, repeats)
    handed = None if request.denoising_start is None else request.latents
    own = model.default_size() if handed is None else latents_size(model, handed)
    if hint is not None and handed is None:
        factor = model.vae.config.scale
        own = (hint[0] // factor * factor, hint[1] // factor * factor)
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


def share_attention(
    model: Model, unet: UNet, request: Request, canvas: Canvas, prompted: list[Prompted]
) -> Sharing | None:
    """Return how the pictures read a reference, or each other; None if they do not.

    unet: the model's, or a view of it.
    Raises ArgumentError for arguments and models that do not go together.
    """
    if request.style_aligned and request.reference_image is not None:
        raise ArgumentError(
            "style_aligned and reference_image both share self-attention; leave one out"
        )
    if request.style_aligned:
        from ldm.techniques.style_aligned import StyleAligned, check_lengths

        check_lengths(prompted)
        return StyleAligned(unet)
    if request.reference_image is None:
        for name in REFERENCE:
            if getattr(request, name) != getattr(Request, name):
                raise ArgumentError(f"{name} is of a reference_image; give that, too")
        return None
    if model.task != "text":
        raise ArgumentError(
            f"reference_image is for models that read the latents alone, and this one is for "
            f"{TASK_NAMES[model.task]}; leave it out"
        )
    model.need_encoder()
    texts, repeats = len(request.prompts), request.repeats
    pictures = read_pictures(request.reference_image, "reference_image", texts, repeats)
    assert pictures is not None
    size, channels = (canvas.height, canvas.width), model.vae.config.in_channels
    pixels = pictures_to_tensor(pictures, *size, channels)
    return Reference(unet, pixels, request.reference_fidelity, request.reference_mode)


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
    options: dict[str, Any] = {"dtype": torch.float32, "device": model.device}
    return torch.tensor(rows[0], **options), torch.tensor(rows[1], **options)
