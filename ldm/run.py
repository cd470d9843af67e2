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
from contextlib import AbstractContextManager, nullcontext
from contextvars import copy_context
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ldm.control.control_lllite import ControlLLLite
from ldm.control.features import AdapterFeatures
from ldm.control.steering import Control
from ldm.denoiser import Denoiser, Listener
from ldm.fast.deepcache import DeepCache
from ldm.fast.graphs import Graphs
from ldm.fast.sdpa import fastest_attention
from ldm.fast.time_cache import known_times
from ldm.fast.waiting import sleep_beside_others
from ldm.images.inputs import expand
from ldm.images.masks import THRESHOLD, shrink_masks
from ldm.latents import Codec, decode_latents, encode_means
from ldm.loading.compatibility import nonfinite_error
from ldm.loading.model import Model
from ldm.memory.shortage import names_shortage
from ldm.output import Output
from ldm.preparation import Run, prepare
from ldm.request import Request
from ldm.samplers import (
    Denoised,
    first_noise_scale,
    sample,
)
from ldm.scheduler import Level
from ldm.techniques.attention_maps import WATCHED
from ldm.techniques.inpainting import Blend, paste, unchanged
from ldm.techniques.predictions import observers_of
from ldm.techniques.reference import Reference
from ldm.unet import UNet

if TYPE_CHECKING:
    from ldm.fast.openvino.parts import EngineUNet


@dataclass
class Progress:
    """What ``Pipeline.stream`` yields after each step; the last one has the ``output``."""

    step: int  # steps done
    steps: int  # steps of this run: image-to-image skips some
    latents: Tensor  # (B, C, h, w), float32, unit scale: x at the level reached
    x0: Tensor  # (B, C, h, w): the model's current estimate of the clean latents
    output: Output | None = None
    t: float = 0.0  # the timestep that the step began at


def stream(model: Model, request: Request, latents: Tensor | None = None) -> Iterator[Progress]:
    """Draw a request, yielding after every step; the last ``Progress`` holds the ``output``.

    latents: (B, C, h, w), scaled: what to start from, in place of the request's image.
    Raises ArgumentError for what this model cannot draw: at the call, not at the first step, and
    before anything is computed. While steps are computed, other threads may draw with the model,
    but change it only before and after (see ``ldm.loading.turns``).
    """
    sleep_beside_others(model.device)
    model.load_own_adapters(request)
    context = copy_context()  # which says who watches
    with model.drawing():
        run, state = prepare(model, request, latents), (model.turns.changes, WATCHED.get())

    def steps() -> Iterator[Progress]:
        with model.drawing() as hold:
            here = copy_context() if WATCHED.get() else context
            current = here.run(lambda: (model.turns.changes, WATCHED.get())) == state
            now = run if current else here.run(prepare, model, request, latents)
            for progress in steps_of(now):
                yield progress
                hold.move_here()

    return steps()


@dataclass(frozen=True, eq=False)
class Start:
    """What the steps of a run begin with."""

    x: Tensor  # (B, C, h, w) at the first level
    image: Tensor | None  # the latents of the image
    eps: Tensor | None  # the first noise


@names_shortage
@torch.no_grad()
def steps_of(run: Run, start: Start | None = None) -> Iterator[Progress]:
    """Compute a run step by step, from a ``start`` of its own or that of another run."""
    model, canvas, steps, noise = run.model, run.canvas, run.schedule.run, run.noise
    start = make_start(run) if start is None else start
    if start.image is not None and not steps:
        yield Progress(0, 0, start.image, start.image, image_itself(run, start.image))
        return
    if isinstance(run.sharing, Reference):
        run.sharing.start(run.encode, run.noise)
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
            steering = model.controlnets | model.t2i_adapters | model.adapters
            raise nonfinite_error(model.parts | steering)
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
        listener=make_listener(run),
        control=make_control(run),
        features=make_features(run),
        sharing=run.sharing,
        image_prompts=run.image_prompts,
        device=model.device,
        steps_done=run.schedule.done,
        observers=observers_of(model.unet),
    )

    def denoise(x: Tensor, level: Level, step: int = 1) -> Denoised:
        sleep_beside_others(model.device)
        with known_times(run.times), kernels(model):
            return denoiser(x, level, step)

    return denoise


def kernels(model: Model) -> AbstractContextManager[None]:
    """Return the context in which an optimized model's attention takes the fastest kernels."""
    return fastest_attention(model.device) if model.optimized.on else nullcontext()


def make_listener(run: Run) -> Listener | None:
    """Return what is called before each U-Net call; None if nobody watches."""
    if not run.watches:
        return None

    def listen(rows: list[tuple[int, str] | None]) -> None:
        for watch in run.watches:
            watch.set_rows(rows)

    return listen


def make_control(run: Run) -> Control | None:
    """Return what ControlNets add to the U-Net; None without one that is used."""
    if not any(use.scale for use in run.controls):
        return None
    graphs = run.model.optimized.control_graphs
    recorded = (
        {} if run.request.tiling else {recording.unet: recording for recording in graphs.values()}
    )
    uses = [
        use
        if isinstance(use.network, ControlLLLite)
        else replace(use, call=recorded.get(use.network))
        for use in run.controls
    ]
    dtype = next(run.model.unet.parameters()).dtype
    return Control(uses, len(run.schedule.run), run.request.guess_mode, dtype)


def make_features(run: Run) -> AdapterFeatures | None:
    """Return what T2I-Adapters add to the U-Net; None without one that is used."""
    if not any(use.scale for use in run.adapters):
        return None
    dtype = next(run.model.unet.parameters()).dtype
    return AdapterFeatures(run.adapters, len(run.schedule.run), dtype)


def choose_unet(run: Run) -> UNet | DeepCache | Graphs | EngineUNet:
    """Return what computes the U-Net of a run."""
    # A recording or an engine does not include what changes the layers from step to step.
    fast = run.model.optimized
    plain = run.cache is None and run.unet is run.model.unet
    plain = plain and not any(isinstance(use.network, ControlLLLite) for use in run.controls)
    if plain:
        return fast.engine or fast.graphs or run.unet
    if fast.engine is not None:
        fast.engine.refuse_view()
    return run.cache or run.unet


def encode_start(run: Run) -> Tensor | None:
    """Encode the image that the run starts from; None if nothing needs it."""
    if run.canvas.latents is not None:
        return run.canvas.latents.to(run.model.device)
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
        with model.turns.vae:
            return encode_means(run.vae, run.canvas.pixels, count, model.device)
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
    if run.request.output_type == "latent":
        return run.output(start)
    return finish(run, start) if pixels is None else run.output(expand(pixels, run.request.count))


def finish(run: Run, x: Tensor) -> Output:
    """Decode the latents, and put back what the masks keep."""
    request, canvas = run.request, run.canvas
    if request.output_type == "latent":
        return run.output(x)
    drawn = decode_finite(run.model, run.vae, x)
    if canvas.pixels is not None and canvas.masks is not None and request.paste_back:
        drawn = paste(drawn, canvas.pixels, canvas.masks)
    return run.output(drawn)


@torch.no_grad()
def decode_finite(model: Model, vae: Codec, x: Tensor) -> Tensor:
    """Decode scaled latents (B, C, h, w) to pixels (B, 3, 8h, 8w), float32 in [-1, 1].

    vae: the model's, or a view of it.
    Raises CheckpointError for a result that is not finite in any number format, instead of
    returning a black picture.
    """
    sleep_beside_others(model.device)
    with model.turns.vae:
        recorded = model.optimized.decoder if vae is model.vae else None
        pixels = decode_latents(vae, x, model.device, recorded)
    if pixels is None:
        raise nonfinite_error(model.parts)
    return pixels
