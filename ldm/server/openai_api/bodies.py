"""The bodies of OpenAI's image interface, with the fields of ``LargeRequest`` beside its own.

Its fields are those of the reference of 2025; what this server cannot do is refused in words (see
``HINTS``), and what changes nothing here is accepted: moderation, user, safety_identifier.
"""

from __future__ import annotations

from typing import Any, Literal

from PIL import Image, ImageChops
from pydantic import ConfigDict, Field

from ldm.images.files import load_layer
from ldm.server.errors import ServerError
from ldm.server.schema import PICTURE_NAMES, DrawingBody, LoraBody
from ldm.server.state import Server
from ldm.server.uploads import read_upload

# Of image-to-image: the same things in the same places, drawn anew; and with an IP-Adapter, which
# keeps their colours and kinds besides.
VARIATION_STRENGTH, PROMPTED_STRENGTH = 0.6, 0.8
SIZE = r"^(auto|[1-9][0-9]{0,9}x[1-9][0-9]{0,9})$"
# What to do in place of what cannot be done here.
HINTS = {
    "quality": "the number of steps decides it: send num_inference_steps (extra_body)",
    "style": "name the style in the prompt",
    "background": "pictures are opaque",
    "output_format": "pictures are png, jpeg or webp",
    "input_fidelity": "send strength (extra_body): 0 keeps the image, 1 redraws it",
    "size": 'write "auto", or width and height such as "512x512"',
    "complexity": "the number of steps decides it: send num_inference_steps (extra_body)",
    "frame_count": "no animations are drawn",
    "frame_duration_ms": "no animations are drawn",
    "svg": "no vector graphics are drawn",
    "markup": "paint on the image itself, or send a mask",
}


class PicturesBody(DrawingBody):
    """What all three routes read."""

    n: int | None = Field(None, ge=1, description="pictures, 1 unless given")
    size: str | None = Field(
        None, pattern=SIZE, description='"WxH", pixels; "auto" is the model\'s own or the image\'s'
    )
    response_format: Literal["url", "b64_json"] | None = Field(
        None, description="b64_json unless given; a url is of this server, and of a recent picture"
    )
    user: str | None = Field(None, description="accepted, and not used")
    # Those that only the other routes read.
    output_format: Literal["png", "jpeg", "webp"] | None = None
    output_compression: int | None = Field(
        None, ge=0, le=100, description="quality of a jpeg or webp, 100 is the best"
    )

    @property
    def format(self) -> Literal["png", "jpeg", "webp"]:
        """The format of the pictures."""
        return self.output_format or "png"

    @property
    def compression(self) -> int | None:
        """The quality of JPEG and WebP for Pillow. Raises ServerError for a PNG's."""
        if self.output_compression in (None, 100) and self.format == "png":
            return None
        if self.format == "png":
            raise ServerError(
                f"output_compression is {self.output_compression} for a png, which loses nothing; "
                "send output_format jpeg or webp",
                "output_compression",
            )
        return None if self.output_compression is None else max(1, self.output_compression)

    def arguments(self, server: Server) -> dict[str, Any]:
        """See ``NamedBody.arguments``. Raises ServerError for two values of one thing, too."""
        found = super().arguments(server)
        n = found.setdefault("num_images_per_prompt", self.n or 1)
        if self.n not in (None, n):
            raise ServerError("n and num_images_per_prompt differ; send one of them", "n")
        if self.size is not None and self.size != "auto":
            width, height = map(int, self.size.split("x"))
            if "width" in found or "height" in found:
                raise ServerError("size is given with width or height; send one of them", "size")
            found |= {"width": width, "height": height}
        return found


class GenerationBody(PicturesBody):
    """What ``/v1/images/generations`` reads: OpenAI's fields, and ours (``extra_body``)."""

    prompt: str = Field(description="what to draw")
    quality: Literal["auto", "standard", "medium"] | None = Field(
        None, description="the model's own; others are refused: num_inference_steps decides"
    )
    style: Literal["natural"] | None = Field(None, description="as the prompt says")
    background: Literal["auto", "opaque"] | None = None
    moderation: Literal["auto", "low"] | None = Field(None, description="accepted: there is none")
    safety_identifier: str | None = Field(None, description="accepted, and not used")
    stream: bool | None = Field(None, description="whether to answer with server-sent events")
    partial_images: int | None = Field(
        None, ge=0, le=3, description="how many of the picture as it forms, of a stream"
    )

    def check(self) -> None:
        """Raise ServerError for values that do not go together."""
        if self.partial_images and not self.stream:
            raise ServerError(
                f"partial_images is {self.partial_images} without stream: true", "partial_images"
            )
        if self.stream and self.response_format == "url":
            raise ServerError(
                "response_format is url, and streams send pictures as b64_json alone",
                "response_format",
            )
        self.compression  # noqa: B018 - it raises


class FormLora(LoraBody):
    """A LoRA in a form, where numbers are texts."""

    model_config = ConfigDict(strict=False)


class EditForm(GenerationBody):
    """What ``/v1/images/edits`` reads beside its pictures."""

    model_config = ConfigDict(strict=False)

    loras: list[FormLora] = Field([])  # type: ignore[assignment]
    input_fidelity: Literal["low"] | None = Field(None, description="strength decides")


class VariationForm(PicturesBody):
    """What ``/v1/images/variations`` reads beside its picture."""

    model_config = ConfigDict(strict=False)

    loras: list[FormLora] = Field([])  # type: ignore[assignment]
    prompt: str = Field("", description="what the variations show, as far as it is known")


Files = dict[str, list[bytes]]


def edit_arguments(form: EditForm, files: Files, server: Server) -> dict[str, Any]:
    """Return the arguments of an edit: where its mask is transparent, the image is drawn anew.

    Without a mask, an image with transparent parts is its own; an opaque one is drawn anew as a
    whole (``strength``). Raises ServerError for pictures that do not go together.
    """
    found = form.arguments(server) | uploaded(files, server)
    image, mask = found.get("image"), found.pop("mask", None)
    if image is None:
        raise ServerError("image is missing; send a file, or several as image[]", "image")
    if not isinstance(image, Image.Image):
        raise ServerError(
            f"{len(image)} images are given; one is edited: send others as reference_image or "
            "ip_adapter_image",
            "image",
        )
    layer = load_layer(image)
    if mask is not None:
        if found.get("mask_image") is not None:
            raise ServerError("mask and mask_image are both given; send one of them", "mask")
        if not isinstance(mask, Image.Image):
            raise ServerError(f"{len(mask)} masks are given; send one", "mask")
        found["mask_image"] = transparent(load_layer(mask), layer.size)
    elif layer.mode == "RGBA" and found.get("mask_image") is None:
        found["mask_image"] = transparent(layer, layer.size)
    found["image"] = layer.convert("RGB")
    return found


def variation_arguments(form: VariationForm, files: Files, server: Server) -> dict[str, Any]:
    """Return the arguments of variations: image-to-image, without a text unless there is one.

    The IP-Adapter of a model's folder, such as the built-in one's, reads the image, too.
    """
    found = form.arguments(server) | uploaded(files, server)
    if not isinstance(found.get("image"), Image.Image):
        number = len(found["image"]) if found.get("image") else "no"
        raise ServerError(f"{number} images are given; send one", "image")
    model = server.library.model(form.model or server.current)
    if server.library.has_ip_adapter(model) and found.get("ip_adapter_scale") != 0:
        found.setdefault("ip_adapter_image", found["image"])
        found.setdefault("strength", PROMPTED_STRENGTH)
    found.setdefault("strength", VARIATION_STRENGTH)
    return found


def uploaded(files: Files, server: Server) -> dict[str, Any]:
    """Decode the pictures of a form: one, or a list of several. Raises ServerError."""
    found: dict[str, Any] = {}
    for name, contents in files.items():
        if name != "mask" and name not in PICTURE_NAMES:
            raise ServerError(f"{name:.60} is a file; it is no argument that is one", name[:60])
        images = [read_upload(content, name, server.limits.upload_pixels) for content in contents]
        found[name] = images if len(images) > 1 else images[0]
    return found


def transparent(layer: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return a mask that is white where a layer is transparent.

    Raises ServerError for one that is opaque, or of another size.
    """
    if layer.size != size:
        raise ServerError(
            f"mask has {layer.width}x{layer.height} pixels and image {size[0]}x{size[1]}; they "
            "must be of one size",
            "mask",
        )
    if layer.mode != "RGBA":
        raise ServerError(
            "mask has no transparent part, which is where the image is drawn anew; a mask that is "
            "white there is called mask_image (extra_body, base64)",
            "mask",
        )
    return ImageChops.invert(layer.getchannel("A"))
