"""Large pictures in two passes ("hires fix"): a small picture, enlarged and drawn over.

A model draws well at the size that it was trained for; in a larger picture, it repeats things. The
second pass is image-to-image, which keeps the layout of the first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from ldm.config.arguments import takes
from ldm.config.picture_readers import T2I_ADAPTER
from ldm.control.hints import expand_hints
from ldm.errors import ArgumentError
from ldm.images.inputs import check_size, read_pictures
from ldm.loading.needed import check_memory
from ldm.loading.turns import Hold
from ldm.output.record import with_records
from ldm.pipeline import Pipeline, Progress
from ldm.preparation import read_steering
from ldm.request import EMBEDDINGS, LargeRequest


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


@takes(LargeRequest)
def hires_fix(pipe: Pipeline, request: LargeRequest) -> Iterator[Progress]:
    """Draw as ``Pipeline.stream``, in two passes.

    As in A1111, ``[a:b:when]`` counts on in the second pass: ``when`` from 1 to 2 is a fraction of
    its steps, and whole numbers beyond the first pass are steps of it.
    Raises ArgumentError for arguments that cannot work, at the call.
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
    pipe.need_encoder()  # of the second pass
    # The picture of a ControlNet or a T2I-Adapter decides the first pass's size unless it is given.
    *_, found = read_steering(pipe, request)
    if found is not None:
        factor = pipe.vae.config.scale
        height, width = (side // factor * factor for side in found)
        request = replace(request, height=request.height or height, width=request.width or width)
    size = hires_size(pipe, request.height, request.width, request.hires_scale)
    steps, skipped = pipe.schedule(
        request.num_inference_steps, request.hires_strength, request.sampler, request.schedule
    )
    second = replace(request, image="", height=size[0], width=size[1])  # not read
    check_memory(pipe, second, size, [], True)  # before the first pass
    each = prompt_each(pipe, request)
    first = draw(pipe, replace(each, output_type="pil"))
    return passes(pipe, each, first, size, len(steps) - skipped)


def passes(
    pipe: Pipeline,
    request: LargeRequest,
    first: Iterator[Progress],
    size: tuple[int, int],
    second_steps: int,
) -> Iterator[Progress]:
    """Compute the first pass, then the second over its pictures, counting the steps of both."""
    with pipe.drawing() as hold:
        yield from both_passes(pipe, request, first, size, second_steps, hold)


def both_passes(
    pipe: Pipeline,
    request: LargeRequest,
    first: Iterator[Progress],
    size: tuple[int, int],
    second_steps: int,
    hold: Hold,
) -> Iterator[Progress]:
    """See ``passes``."""
    for progress in first:
        small = progress.output
        yield replace(progress, steps=progress.steps + second_steps, output=None)
        hold.move_here()
    assert small is not None and isinstance(small.images, list)  # of the last step, as PIL's
    height, width = size
    seed = request.seed
    if seed is None and request.generator is None:  # picked by the first pass
        seed = small.seeds[0]
    second = replace(
        request,
        image=small.images,
        strength=request.hires_strength,
        height=height,
        width=width,
        steps_before=progress.steps,
        seed=seed,
    )
    for later in draw(pipe, second):
        done = progress.steps + later.step
        if later.output is not None and isinstance(later.output.images, list):
            output, choice = later.output, pipe.choose_sampler(request.sampler, request.schedule)
            # What is written into the files is the request for both passes.
            pictures = with_records(pipe, request, choice, later.output.images, output.seeds)
            later = replace(later, output=replace(output, images=[*pictures]))
        yield replace(later, step=done, steps=progress.steps + later.steps)


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


def draw(pipe: Pipeline, request: LargeRequest) -> Iterator[Progress]:
    """Draw one pass."""
    arguments = request.arguments
    return pipe.stream(arguments.pop("prompt"), **arguments)
