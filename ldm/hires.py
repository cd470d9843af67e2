"""Large pictures in two passes ("hires fix"): a small one, made larger and drawn over.

A model draws well at the size that it was trained for; asked for a larger picture at once, it
repeats things. The second pass is image-to-image, which keeps the layout of the first.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ldm.errors import ArgumentError
from ldm.images.inputs import check_numbers, check_size
from ldm.pipeline import Pipeline, Progress

STRENGTH = 0.5


def hires_size(
    pipe: Pipeline, height: int | None, width: int | None, scale: float
) -> tuple[int, int]:
    """(height, width) of the second pass, multiples of 8. Raises ArgumentError for a wrong scale.

    height, width: of the first pass; None is the model's own.
    """
    if not 1 <= scale <= 8:
        raise ArgumentError(f"hires_scale is {scale}; it must be in [1, 8]")
    (own_height, own_width), factor = pipe.default_size(), pipe.vae.config.scale
    height = own_height if height is None else height
    width = own_width if width is None else width
    check_size(height, width, factor)
    sides = (int(side * scale / factor + 0.5) * factor for side in (height, width))
    return check_size(*sides, factor)


def hires_fix(
    pipe: Pipeline,
    prompt: str | Sequence[str],
    *,
    hires_scale: float = 2.0,
    hires_strength: float = STRENGTH,
    height: int | None = None,
    width: int | None = None,
    negative_prompt: str | Sequence[str] | None = None,
    num_images_per_prompt: int = 1,
    output_type: str = "pil",
    **arguments: Any,
) -> Iterator[Progress]:
    """``Pipeline.stream`` in two passes; its arguments, and:

    hires_scale: how much larger each side gets. hires_strength: in [0, 1], how much of the larger
    picture is drawn anew. As in A1111, ``[a:b:when]`` goes on counting in the second pass: ``when``
    from 1 to 2 is a fraction of its steps, and whole numbers past the first pass's are steps of it.
    Raises ArgumentError for what cannot work, at once.
    """
    check_numbers(hires_fix, locals())
    check_numbers(Pipeline.stream, arguments)
    for name in ("image", "mask_image", "latents", "steps_before"):
        if arguments.get(name) is not None:
            raise ArgumentError(f"{name} and two passes do not go together; leave one out")
    large_height, large_width = hires_size(pipe, height, width, hires_scale)
    steps, skipped = pipe.schedule(
        arguments.get("num_inference_steps"),
        hires_strength,
        arguments.get("sampler"),
        arguments.get("schedule"),
    )
    second_steps = len(steps) - skipped
    # The second pass has a picture for each prompt.
    texts = [prompt] if isinstance(prompt, str) else list(prompt)
    texts = [text for text in texts for _ in range(num_images_per_prompt)]
    if not isinstance(negative_prompt, str) and negative_prompt is not None:
        negative_prompt = [text for text in negative_prompt for _ in range(num_images_per_prompt)]
    arguments |= {"negative_prompt": negative_prompt}
    first = pipe.stream(texts, height=height, width=width, **arguments)

    def run() -> Iterator[Progress]:
        for progress in first:
            small = progress.output
            yield replace(progress, steps=progress.steps + second_steps, output=None)
        generator = arguments.get("generator")
        seeds = {} if generator is not None else {"seed": small.seeds[0]}
        second = pipe.stream(
            texts,
            image=small.images,
            strength=hires_strength,
            output_type=output_type,
            height=large_height,
            width=large_width,
            steps_before=progress.steps,
            **(arguments | seeds),
        )
        for later in second:
            done = progress.steps + later.step
            yield replace(later, step=done, steps=progress.steps + later.steps)

    return run()
