"""The body of our own interface: the fields of ``LargeRequest`` as JSON, and names beside them.

``DrawingBody`` is derived from the request: types, ranges, and what is said of each argument.
"""

from __future__ import annotations

import dataclasses
import math
import re
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, Union, get_args

from PIL.Image import Image
from pydantic import BaseModel, ConfigDict, Field, create_model

from ldm.adapters.lora_scale import TagScale
from ldm.config.arguments import about
from ldm.config.checking import scalars
from ldm.config.forms import PICTURES
from ldm.config.settings import type_hints
from ldm.control.preprocessed import ControlSource
from ldm.control.preprocessors import PREPROCESSORS
from ldm.control.source import advice, read_parameters
from ldm.request import LargeRequest
from ldm.server.drawing import Drawing
from ldm.server.errors import ServerError
from ldm.server.state import Server
from ldm.server.uploads import read_upload

# Arguments of Python that a client has no use for.
INTERNAL = {"output_type", "steps_before", "denoising_start", "denoising_end"}
PREPROCESSED = ("control_image", "adapter_image")
# What the command's line of help says otherwise than JSON needs it.
WORDS = {
    "hires_upscaler": "what enlarges between the passes: a name of GET /sdapi/v1/upscalers or "
    "/sdapi/v1/latent-upscale-modes",
    "paste_back": "keep the image's own pixels outside of the mask (default: true)",
    "clip_skip": "how many of the text encoder's last layers to leave out, as diffusers counts: "
    "A1111's number less 1 (default: 0)",
    "controlnet_conditioning_scale": "how much ControlNets steer, 0 to 2 as a rule; one number for "
    "all, or a list (default: 1.0)",
    "adapter_conditioning_scale": "how much T2I-Adapters steer, 0 to 2 as a rule; one number for "
    "all, or a list (default: 1.0)",
    "ip_adapter_scale": "how much IP-Adapters count, 0 to 1 as a rule; one number for all, or a "
    "list (default: 1)",
    "outpaint": "draw past the edges of the image: pixels left, top, right, bottom",
    "width": "pixels, a multiple of 8, of models without VAE any number (default: the model's, or "
    "as the image's shape asks)",
    "seed": "the first picture's seed; the next ones count up; a list has each picture's (default: "
    "-1, a random one)",
}
SEEDS = "[-1, 9223372036854775807]"  # 2⁶³ - 1
INTERVALS = {"height": "[1, inf)", "width": "[1, inf)", "seed": SEEDS, "variation_seed": SEEDS}
MOST_LISTED = 64  # values of a list


class StrictBody(BaseModel):
    """What a client sends: unknown names and values of other types are refused."""

    model_config = ConfigDict(extra="forbid", strict=True)


class LoraBody(StrictBody):
    """A LoRA and how strong it is."""

    name: str
    scale: float = Field(1.0, allow_inf_nan=False)


class ControlBody(StrictBody):
    """A picture that is preprocessed for a ControlNet, at the size that is drawn."""

    preprocessor: str = Field(
        description='a name of /api/preprocessors, maybe with parameters: "canny,low=50,high=120"'
    )
    image: str = Field(description="base64, or a data URL", json_schema_extra={"format": "byte"})


class NamedBody(StrictBody):
    """What is drawn with, by the names that /api/models lists."""

    model: str | None = Field(None, description="null is the current one")
    loras: list[LoraBody] = Field([], description="beside those in the prompt's <lora:name:scale>")
    controlnets: list[str] = Field([], description="that read control_image, in its order")
    hires: bool | None = Field(
        None, description="whether a second pass enlarges the picture; null does if hires_… is set"
    )
    record: bool = Field(False, description="whether each step is kept, for the views of the page")
    draft: bool = Field(False, description="whether the picture is not written into the folder")
    few_steps: bool = Field(
        False,
        description="whether it is drawn by the model's own LoRA for few steps, whose sampler, "
        "steps and guidance scale are those that are null",
    )

    def arguments(self, server: Server) -> dict[str, Any]:
        """Return the arguments of ``LargeRequest``, with pictures decoded.

        Raises ServerError for what is no picture.
        """
        most = server.limits.upload_pixels
        found = {}
        for name in request_fields():
            value = getattr(self, name)
            if value is not None:
                found[name] = value if name not in PICTURE_NAMES else decoded(value, name, most)
        return found

    def options(self) -> dict[str, Any]:
        """Return the options of ``make_drawing``."""
        hires = self.hires
        if hires is None:
            hires = any(
                getattr(self, f"hires_{name}") is not None for name in ("scale", "strength")
            )
        return {
            "model": self.model,
            "loras": [(lora.name, TagScale(lora.scale, lora.scale)) for lora in self.loras],
            "controlnets": self.controlnets,
            "hires": hires,
            "record": self.record,
            "draft": self.draft,
            "few_steps": self.few_steps,
        }

    def drawing(self, server: Server) -> Drawing:
        """Return it as a drawing. Raises as ``make_drawing`` does."""
        return server.make_drawing(self.arguments(server), **self.options())


def decoded(value: Any, name: str, most_pixels: int) -> Any:
    """Decode a picture, or a list of pictures. Raises ServerError for what is none."""
    if isinstance(value, list):
        return [decoded(each, name, most_pixels) for each in value]
    if isinstance(value, ControlBody):
        return control_source(value.preprocessor, read_upload(value.image, name, most_pixels))
    return read_upload(value, name, most_pixels)


def control_source(text: str, image: Image) -> ControlSource:
    """Return a picture with its preprocessor, such as "canny,low=50".

    Raises ServerError for an unknown one, ArgumentError for its parameters.
    """
    name, *items = (part.strip() for part in text.split(","))
    if name not in PREPROCESSORS:
        raise ServerError(f"unknown preprocessor {name!r:.60}; {advice(name)}", "preprocessor")
    return ControlSource(name, image, read_parameters(name, items))


@cache
def request_fields() -> dict[str, tuple[Any, Any]]:
    """Return the type and the field of pydantic of each argument that JSON can hold."""
    found = {}
    for field in dataclasses.fields(LargeRequest):
        form = field.metadata.get("form")
        if field.name in INTERNAL or (form is not None and form is not PICTURES):
            continue
        kind = picture_type(field.name) if form else json_type(field)
        found[field.name] = (Union[kind, None], Field(None, description=description(field)))  # noqa: UP007
    return found


def picture_type(name: str) -> Any:
    """Return the type of an argument that is a picture, or a list of these."""
    one: Any = Annotated[str, Field(json_schema_extra={"format": "byte"})]
    if name in PREPROCESSED:
        one = Union[one, ControlBody]  # noqa: UP007
    return Union[one, Annotated[list[one], Field(max_length=MOST_LISTED)]]  # noqa: UP007


def json_type(field: dataclasses.Field[Any]) -> Any:
    """Return the type of an argument, with its range."""
    names = field.metadata.get("names")
    if names:
        return Literal[names]
    hint = type_hints(LargeRequest)[field.name]
    plain = scalars(hint) - {type(None), Path}  # clients give no paths
    if field.name == "control_mode":
        return control_modes()
    interval = field.metadata.get("interval") or INTERVALS.get(field.name)
    (one,) = (ranged(kind, interval) for kind in plain)
    fixed = [each for each in get_args(hint) or [hint] if is_fixed(each)] or [hint]
    if is_fixed(fixed[0]):
        length = len(get_args(fixed[0]))
        return Annotated[list[one], Field(min_length=length, max_length=length)]  # type: ignore[valid-type]
    if plain == {hint} or set(get_args(hint)) <= {*plain, type(None)}:
        return one
    return Union[one, Annotated[list[one], Field(max_length=MOST_LISTED)]]  # type: ignore[valid-type]  # noqa: UP007


def control_modes() -> Any:
    """Return the type of ``control_mode``: kinds of pictures, for each ControlNet or of one."""
    kinds = Union[int, str, None]  # noqa: UP007
    return Union[int, str, Annotated[list[kinds | list[kinds]], Field(max_length=MOST_LISTED)]]  # noqa: UP007


def is_fixed(hint: Any) -> bool:
    """Whether a type is a tuple of a certain length."""
    return getattr(hint, "__origin__", None) is tuple and Ellipsis not in get_args(hint)


def ranged(kind: type, interval: str | None) -> Any:
    """Return a type with the range of an interval such as "(0, 1]"."""
    limits: dict[str, Any] = {}
    if interval is not None:
        low, high = interval[1:-1].split(",")
        if math.isfinite(float(low)):
            limits["ge" if interval[0] == "[" else "gt"] = kind(low)
        if math.isfinite(float(high)):
            limits["le" if interval[-1] == "]" else "lt"] = kind(high)
    if kind is float:
        limits["allow_inf_nan"] = False
    return Annotated[kind, Field(**limits)] if limits else kind


def description(field: dataclasses.Field[Any]) -> str:
    """Return what is said of an argument, with the names of arguments in place of options."""
    if field.name in WORDS:
        return WORDS[field.name]
    help = about(field).help.replace("{default:g}", "{default}").format(default=field.default)
    names = option_names()
    words = re.sub(r"--[a-z][a-z0-9-]+", lambda found: names.get(found[0], found[0]), help)
    if field.metadata.get("form") is not None:
        return f"{words.replace('; may be repeated', '')}: base64 or a data URL"
    return words


@cache
def option_names() -> dict[str, str]:
    """Return the names of arguments by those of the command's options."""
    own = {
        option: field.name
        for field in dataclasses.fields(LargeRequest)
        for option in about(field).options
    }
    return own | {
        "--controlnet": "ControlNet",
        "--t2i-adapter": "T2I-Adapter",
        "--ip-adapter": "IP-Adapter",
        "--control": "a preprocessor",
    }


PICTURE_NAMES = frozenset(
    field.name
    for field in dataclasses.fields(LargeRequest)
    if field.metadata.get("form") is PICTURES
)

if TYPE_CHECKING:
    DrawingBody = NamedBody
else:
    DrawingBody = create_model(
        "DrawingBody",
        __base__=NamedBody,
        __doc__="What to draw: the arguments of ldm.request.LargeRequest; null is the default.",
        **request_fields(),
    )
