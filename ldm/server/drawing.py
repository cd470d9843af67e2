"""What a job draws: a request, with the names of what it is drawn with."""

from __future__ import annotations

import dataclasses
import re
import secrets
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image

from ldm.adapters.lora_scale import TagScale
from ldm.control.preprocessed import ControlSource
from ldm.errors import ArgumentError
from ldm.images.files import load_image
from ldm.pipeline import Pipeline
from ldm.request import ARGUMENTS, LargeRequest
from ldm.samplers import read_names
from ldm.server.errors import ServerError
from ldm.server.library import Library
from ldm.server.settings import Limits
from ldm.techniques.masked_region import MaskedRegion
from ldm.techniques.outpainting import extend_canvas
from ldm.text.lora_tags import split_tags

LONE_SURROGATE = re.compile("[\ud800-\udfff]")
MOST_SEED = 2**32  # seeds that are picked are below it, as A1111's
# What the pictures of one run may have of their own.
OWN = ("prompt", "negative_prompt", "seed", "num_images_per_prompt")


@dataclass(frozen=True, kw_only=True, eq=False)
class Drawing:
    """What is drawn, and with what; all names are listed ones of the ``Library``.

    Attributes:
        request: prompts without tags of LoRAs; ``seed`` is the first picture's, or a list.
        hires: whether a second pass enlarges the picture, as ``hires_scale`` says.
        loras: names and scales, of ``<lora:…>`` in the prompts and of the request's own list.
        controlnets: names, in the order of ``request.control_image``; () is the model's own.
        record: whether each step is kept, for views of how the picture came about.
        region: what the pictures are parts of, and are pasted into: "only masked" inpainting.
        draft: whether the picture is shown and then forgotten: it is not written into a folder.
        few_steps: whether the LoRA in the model's folder draws it, see ``use_few_steps``.
    """

    request: LargeRequest
    model: str
    hires: bool = False
    loras: tuple[tuple[str, TagScale], ...] = ()
    controlnets: tuple[str, ...] = ()
    record: bool = False
    region: MaskedRegion | None = None
    draft: bool = False
    few_steps: bool = False

    @property
    def divisible(self) -> bool:
        """Whether each picture can be drawn in a run of its own."""
        return not self.request.style_aligned and not self.request.variation_strength

    def pixels(self, pipe: Pipeline) -> float:
        """Return how many pixels one picture has, after a second pass."""
        (width, height), own = size_of(self.request), pipe.default_size()
        scale = self.request.hires_scale if self.hires else 1.0
        return (width or own[1]) * (height or own[0]) * scale**2

    @cached_property
    def key(self) -> tuple[Any, ...]:
        """What two drawings have in common if one run can draw both.

        A picture, such as the image to start from, equals itself alone.
        """
        values = ((name, getattr(self.request, name)) for name in FIELDS if name not in OWN)
        plain = tuple((name, v if is_plain(v) else id(v)) for name, v in values)
        negative = self.request.negative_prompt is None
        alone = None if self.divisible else id(self)
        return (
            self.model,
            self.hires,
            self.loras,
            self.controlnets,
            self.record,
            self.few_steps,
            None if self.region is None else id(self.region),
            negative,
            alone,
            plain,
        )

    def singles(self) -> Iterator[LargeRequest]:
        """Yield a request for each picture, or the whole one if it is not divisible."""
        request = self.request
        if not self.divisible:
            yield request
            return
        seeds = seeds_of(request)
        negatives = request.negative_prompt
        for i, seed in enumerate(seeds):
            prompt = request.prompts[i // request.repeats]
            own = negatives
            if own is not None and not isinstance(own, str):
                own = own[i // request.repeats] if len(own) > 1 else own[0]
            yield replace(
                request, prompt=prompt, negative_prompt=own, seed=seed, num_images_per_prompt=1
            )


FIELDS = tuple(field.name for field in dataclasses.fields(LargeRequest))


def is_plain(value: Any) -> bool:
    """Whether a value is compared by what it is: a number, a text or a list of these."""
    if isinstance(value, tuple):
        return all(map(is_plain, value))
    return value is None or isinstance(value, bool | int | float | str | Path)


def seeds_of(request: LargeRequest) -> list[int]:
    """Return the seed of each picture."""
    seed = request.seed
    if isinstance(seed, list | tuple):
        return list(seed)
    assert seed is not None  # see ``make_drawing``
    if request.variation_strength:
        return [seed] * request.count
    return [seed + i for i in range(request.count)]


def make_drawing(
    library: Library,
    limits: Limits,
    arguments: dict[str, Any],
    *,
    model: str | None = None,
    loras: Sequence[tuple[str, TagScale]] = (),
    controlnets: Sequence[str] = (),
    hires: bool = False,
    record: bool = False,
    region: MaskedRegion | None = None,
    draft: bool = False,
    few_steps: bool = False,
) -> Drawing:
    """Make a drawing of a client's arguments: those of ``LargeRequest``, pictures as PIL images.

    model, loras, controlnets: names as the client knows them. A seed that is None or -1 is picked.
    region: what the request's image and mask were cut out of.
    Raises ArgumentError, ServerError or UnknownNameError for what cannot be drawn by any model or
    is past the limits.
    """
    given = dict(arguments)
    if given.get("seed") in (None, -1):
        given["seed"] = secrets.randbelow(MOST_SEED)
    check_texts(given, limits)
    if isinstance(given.get("hires_upscaler"), str):
        given["hires_upscaler"] = library.upscaler(given["hires_upscaler"])
    texts, tags = take_tags(given.get("prompt", ""))
    given["prompt"] = texts
    try:
        request = LargeRequest(**given)
    except TypeError as error:  # an argument that there is not
        raise ArgumentError(str(error).partition(") ")[2] or str(error)) from None
    refuse_paths(request)
    check_negatives(request)
    read_names(request.sampler, request.schedule)  # the model is not asked before its turn
    check_limits(request, limits, hires)
    request = widened(request)
    named = [
        (library.choose("lora", library.loras, name), scale) for name, scale in [*loras, *tags]
    ]
    summed: dict[str, TagScale] = {}
    for name, scale in named:
        summed[name] = summed.get(name, TagScale(0.0, 0.0)).plus(scale)
    controls = [library.choose("controlnet", library.controlnets, name) for name in controlnets]
    return Drawing(
        request=request,
        model=library.model(model),
        hires=hires,
        loras=tuple(summed.items()),
        controlnets=tuple(controls),
        record=record,
        region=region,
        draft=draft,
        few_steps=few_steps,
    )


def take_tags(prompt: Any) -> tuple[Any, list[tuple[str, TagScale]]]:
    """Return the prompt without its tags of LoRAs, and these; all texts must name the same."""
    if isinstance(prompt, str):
        text, tags = split_tags(prompt)
        return text, [(tag.name, TagScale(*tag[1:])) for tag in tags]
    if not isinstance(prompt, list | tuple) or not all(isinstance(text, str) for text in prompt):
        return prompt, []  # which the request refuses
    pairs = [take_tags(text) for text in prompt]
    if any(tags != pairs[0][1] for _, tags in pairs):
        raise ArgumentError("prompt: all texts of one job must name the same LoRAs")
    return [text for text, _ in pairs], pairs[0][1] if pairs else []


def check_texts(arguments: dict[str, Any], limits: Limits) -> None:
    """Raise ServerError for texts that are too long to be read, or that are none."""
    for name in ("prompt", "negative_prompt"):
        texts = arguments.get(name)
        for text in texts if isinstance(texts, list | tuple) else [texts]:
            if isinstance(text, str) and len(text) > limits.prompt:
                raise ServerError(
                    f"{name} has {len(text):,} characters; at most {limits.prompt:,} are read",
                    name,
                )
            if isinstance(text, str) and LONE_SURROGATE.search(text):
                raise ServerError(f"{name} is no text: it has half a surrogate pair", name)


def check_negatives(request: LargeRequest) -> None:
    """Raise ServerError for negative prompts that are neither one nor one for each prompt."""
    given, count = request.negative_prompt, len(request.prompts)
    if given is not None and not isinstance(given, str) and len(given) not in (1, count):
        raise ServerError(
            f"negative_prompt has {len(given)} texts for {count} prompts; give one, or one for "
            "each",
            "negative_prompt",
        )


def refuse_paths(request: LargeRequest) -> None:
    """Raise ServerError for paths in the place of pictures, which clients may not give."""
    for field in dataclasses.fields(request):
        if field.metadata.get("form") is not None and has_path(getattr(request, field.name)):
            raise ServerError(f"{field.name} is a path; send the picture itself", field.name)


def given_pictures(request: LargeRequest) -> Iterator[Image.Image]:
    """Yield the pictures that a client has sent."""
    left = [getattr(request, name) for name in FIELDS]
    while left:
        value = left.pop()
        if isinstance(value, list | tuple):
            left += value
        elif isinstance(value, Image.Image):
            yield value
        elif isinstance(value, ControlSource) and isinstance(value.path, Image.Image):
            yield value.path


def has_path(value: Any) -> bool:
    """Whether a path is in a value or in a list of values."""
    if isinstance(value, list | tuple):
        return any(map(has_path, value))
    return isinstance(value, str | bytes) or hasattr(value, "__fspath__")


def widened(request: LargeRequest) -> LargeRequest:
    """Return the request with the canvas and the mask that ``outpaint`` asks for."""
    if request.outpaint is None:
        return request
    if not isinstance(request.image, Image.Image) or request.mask_image is not None:
        raise ServerError("outpaint needs one image, without a mask_image", "outpaint")
    image, mask = extend_canvas(load_image(request.image), *request.outpaint)
    return replace(request, image=image, mask_image=mask, outpaint=None)


def size_of(request: LargeRequest) -> tuple[int | None, int | None]:
    """Return the (width, height) to draw, as far as it is known without the model."""
    image = request.image[0] if isinstance(request.image, list) and request.image else request.image
    own = image.size if isinstance(image, Image.Image) else (None, None)
    return request.width or own[0], request.height or own[1]


def check_limits(request: LargeRequest, limits: Limits, hires: bool) -> None:
    """Raise ServerError for a request past the limits."""
    scale = request.hires_scale if hires else 1.0
    width, height = ((side or 0) * scale for side in size_of(request))
    check_pixels(width, height, limits)
    for name in ("num_inference_steps", "hires_steps"):
        steps = getattr(request, name)
        if (steps or 0) > limits.steps:
            raise ServerError(f"{name} is {steps}; this server computes up to {limits.steps}", name)
    if request.count > limits.pictures:
        raise ServerError(
            f"{request.count} pictures are too many; this server draws up to {limits.pictures} "
            "in a job",
            "num_images_per_prompt",
        )


def check_pixels(width: float, height: float, limits: Limits) -> None:
    """Raise ServerError for a size past the limits."""
    if max(width, height) > limits.side or width * height > limits.pixels:
        raise ServerError(
            f"{width:.0f}x{height:.0f} pixels are too many; this server draws up to "
            f"{limits.pixels:,} pixels, {limits.side} a side",
            "width",
        )


def merged(requests: Sequence[LargeRequest]) -> dict[str, Any]:
    """Return the arguments that draw requests of one ``Drawing.key`` in one run."""
    first = requests[0]
    if len(requests) == 1:
        return {name: getattr(first, name) for name in FIELDS}
    own: dict[str, Any] = {
        "prompt": [request.prompt for request in requests],
        "negative_prompt": None
        if first.negative_prompt is None
        else [request.negative_prompt for request in requests],
        "seed": [request.seed for request in requests],
    }
    return {name: getattr(first, name) for name in FIELDS} | own


def plain_arguments(arguments: dict[str, Any]) -> dict[str, Any]:
    """Return those of ``Pipeline.stream`` alone."""
    return {name: arguments[name] for name in ARGUMENTS}
