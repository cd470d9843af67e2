"""Large pictures in two passes ("hires fix"): a small picture, enlarged and drawn over.

A model draws well at the size that it was trained for; in a larger picture, it repeats things. The
second pass is image-to-image, which keeps the layout of the first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from PIL.Image import Image
from torch import Tensor

from ldm.config.arguments import takes
from ldm.config.picture_readers import T2I_ADAPTER
from ldm.config.upscalers import BuiltIn
from ldm.control.hints import expand_hints
from ldm.errors import ArgumentError
from ldm.images.inputs import check_size, read_pictures
from ldm.loading.needed import check_memory
from ldm.loading.turns import Hold
from ldm.output import Output
from ldm.output.record import with_records
from ldm.pipeline import Pipeline, Progress
from ldm.preparation import read_steering
from ldm.request import EMBEDDINGS, LargeRequest, Request
from ldm.run import stream
from ldm.upscaling import Upscaler, find_upscaler, load_upscaler
from ldm.upscaling.latents import upscale_latents

MOST_STEPS = 10_000  # of a whole plan, of which the second pass runs a part


def hires_size(
    pipe: Pipeline, height: int | None, width: int | None, scale: float
) -> tuple[int, int]:
    """Return (height, width) of the second pass, multiples of 8.

    height, width: of the first pass; None is the model's own. Raises ArgumentError for a wrong
    scale.
    """
    if not 1 <= scale <= 8:
        raise ArgumentError(f"hires_scale is {scale}; it must be in [1, 8]")
    (own_height, own_width), factor = pipe.default_size(), pipe.vae.config.scale
    height = own_height if height is None else height
    width = own_width if width is None else width
    check_size(height, width, factor)
    large_height, large_width = (
        int(side * scale / factor + 0.5) * factor for side in (height, width)
    )
    return check_size(large_height, large_width, factor)


def planned_steps(request: LargeRequest) -> int | None:
    """Return the num_inference_steps of the second pass, of which ``hires_strength`` are run.

    None is the model's. Raises ArgumentError for ``hires_steps`` that are too many for so little
    strength.
    """
    run, strength = request.hires_steps, request.hires_strength
    if run is None or strength == 0:
        return request.num_inference_steps
    if run > MOST_STEPS * strength:
        raise ArgumentError(
            f"hires_steps is {run} and hires_strength {strength:g}: {run / strength:.0f} steps "
            f"would be planned; at most {MOST_STEPS} are"
        )
    total = math.ceil(run / strength)
    return total + (int(total * strength) < run)  # the product is rounded


@takes(LargeRequest)
def hires_fix(pipe: Pipeline, request: LargeRequest) -> Iterator[Progress]:
    """Draw as ``Pipeline.stream``, in two passes.

    Between them, ``hires_upscaler`` enlarges the pictures, or the latents, which are then neither
    decoded nor encoded. As in A1111, ``[a:b:when]`` counts on in the second pass: ``when`` from 1
    to 2 is a fraction of its steps, and whole numbers beyond the first pass are steps of it.
    Raises ArgumentError for arguments that cannot work, and CheckpointError for a model that is no
    upscaler, at the call.
    """
    excluded = {
        "image": request.image,
        "mask_image": request.mask_image,
        "outpaint": request.outpaint,
        "strength": request.strength,
        "latents": request.latents,
        "steps_before": request.steps_before or None,
        "denoising_start": request.denoising_start,
        "denoising_end": request.denoising_end,
    }
    for name, value in excluded.items():
        if value is not None:
            raise ArgumentError(f"{name} and two passes do not go together; leave one out")
    enlarge = read_upscaler(pipe, request.hires_upscaler)
    latent = isinstance(enlarge, BuiltIn)
    if not latent:
        pipe.need_encoder()  # of the second pass
    # The picture of a ControlNet or a T2I-Adapter decides the first pass's size unless it is given.
    *_, found = read_steering(pipe, request)
    if found is not None:
        factor = pipe.vae.config.scale
        height, width = (side // factor * factor for side in found)
        request = replace(request, height=request.height or height, width=request.width or width)
    size = hires_size(pipe, request.height, request.width, request.hires_scale)
    if not isinstance(enlarge, BuiltIn):
        height, width = pipe.default_size()
        enlarge.check((request.width or width, request.height or height), size[1], size[0])
    steps, skipped = pipe.schedule(
        planned_steps(request), request.hires_strength, request.sampler, request.schedule
    )
    image = None if latent else ""  # not read
    second = replace(request, image=image, height=size[0], width=size[1])
    check_memory(pipe, second, size, [], True)  # before the first pass
    each = prompt_each(pipe, request)
    first = draw(pipe, replace(each, output_type="latent" if latent else "pil"))
    return passes(pipe, each, first, enlarge, size, len(steps) - skipped)


def read_upscaler(pipe: Pipeline, name: str | Path) -> BuiltIn | Upscaler:
    """Return what enlarges between the passes: a ``BuiltIn`` for latents, or of pictures."""
    found = find_upscaler(name)
    if isinstance(found, BuiltIn) and found.latent:
        return found
    return load_upscaler(name, device=pipe.device)


def passes(
    pipe: Pipeline,
    request: LargeRequest,
    first: Iterator[Progress],
    enlarge: BuiltIn | Upscaler,
    size: tuple[int, int],
    second_steps: int,
) -> Iterator[Progress]:
    """Compute the first pass, then the second over what it drew, counting the steps of both."""
    with pipe.drawing() as hold:
        yield from both_passes(pipe, request, first, enlarge, size, second_steps, hold)


def both_passes(
    pipe: Pipeline,
    request: LargeRequest,
    first: Iterator[Progress],
    enlarge: BuiltIn | Upscaler,
    size: tuple[int, int],
    second_steps: int,
    hold: Hold,
) -> Iterator[Progress]:
    """See ``passes``."""
    for progress in first:
        small = progress.output
        yield replace(progress, steps=progress.steps + second_steps, output=None)
        hold.move_here()
    assert small is not None  # of the last step
    images, latents = enlarged(pipe, small, enlarge, size)
    seed = request.seed
    if seed is None and request.generator is None:  # picked by the first pass
        seed = small.seeds[0]
    second = replace(
        request,
        image=images,
        strength=request.hires_strength,
        num_inference_steps=planned_steps(request),
        height=size[0],
        width=size[1],
        steps_before=progress.steps,
        seed=seed,
    )
    for later in draw(pipe, second, latents):
        done = progress.steps + later.step
        if later.output is not None and isinstance(later.output.images, list):
            output, choice = later.output, pipe.choose_sampler(request.sampler, request.schedule)
            # What is written into the files is the request for both passes.
            pictures = with_records(pipe, request, choice, later.output.images, output.seeds)
            later = replace(later, output=replace(output, images=[*pictures]))
        yield replace(later, step=done, steps=progress.steps + later.steps)


def enlarged(
    pipe: Pipeline, small: Output, enlarge: BuiltIn | Upscaler, size: tuple[int, int]
) -> tuple[list[Image] | None, Tensor | None]:
    """Return what the second pass starts from, at its (height, width): pictures, or latents."""
    height, width = size
    if isinstance(enlarge, BuiltIn):
        assert isinstance(small.images, Tensor)
        factor = pipe.vae.config.scale
        return None, upscale_latents(small.images, enlarge, (height // factor, width // factor))
    assert isinstance(small.images, list)
    return [enlarge(picture, width, height) for picture in small.images], None


def prompt_each(pipe: Pipeline, request: LargeRequest) -> LargeRequest:
    """Return the request with a prompt for each picture, as the second pass has one for each."""
    repeats = range(request.repeats)
    negative = request.negative_prompt
    if negative is not None and not isinstance(negative, str):
        negative = [text for text in negative for _ in repeats]
    prompts = [text for text in request.prompts for _ in repeats]
    given = {name: getattr(request, name) for name in EMBEDDINGS}
    embeddings: dict[str, Any] = {
        name: None if rows is None else rows.repeat_interleave(len(repeats), dim=0)
        for name, rows in given.items()
    }
    controlnets = pipe.used_controlnets(request.control_image is not None)
    reference: Any = read_pictures(
        request.reference_image, "reference_image", len(request.prompts), len(repeats)
    )
    return replace(
        request,
        prompt=prompts,
        negative_prompt=negative,
        num_images_per_prompt=1,
        control_image=expand_hints(request, controlnets),
        adapter_image=expand_hints(request, pipe.t2i_adapters, T2I_ADAPTER),
        reference_image=reference,
        **embeddings,
    )


def draw(
    pipe: Pipeline, request: LargeRequest, latents: Tensor | None = None
) -> Iterator[Progress]:
    """Draw one pass, from ``latents`` if they are given."""
    return stream(pipe, Request(**request.arguments), latents)
