"""``img2img``: pictures that start from others, whole or in a part."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import Request
from PIL import Image, ImageFilter, ImageOps

from ldm.images.files import load_image, load_layer, stretch
from ldm.images.resizing import crop_and_resize, fill_masked, resize_and_fill
from ldm.request import MAX_BLUR
from ldm.server.drawing import Drawing, check_pixels
from ldm.server.routes.a1111.answers import make_router
from ldm.server.routes.a1111.bodies import ImageToImageBody
from ldm.server.routes.a1111.controlnet_units import add_scripts
from ldm.server.routes.a1111.options import Options, options_of
from ldm.server.routes.a1111.requests import Asked, read_body, size_of
from ldm.server.routes.a1111.results import answer
from ldm.server.routes.common import server_of
from ldm.server.state import Server
from ldm.server.uploads import read_upload
from ldm.techniques.masked_region import masked_region

router = make_router()
FILL, ORIGINAL = 0, 1  # of inpainting_fill
LATENT_FILLS = {2: "latent noise", 3: "latent nothing"}
OPAQUE = 128  # alpha above which a mask is white


@router.post("/img2img")
async def image_to_image(request: Request, body: ImageToImageBody) -> dict[str, Any]:
    """Draw pictures that start from others."""
    server, options = server_of(request), options_of(request)
    asked, drawings = await asyncio.to_thread(read, server, options, body)
    if not body.include_init_images:
        body.init_images, body.mask = [], None
    found = await answer(request, asked, drawings)
    if not body.include_init_images:
        found["parameters"]["init_images"] = None
    return found


def read(server: Server, options: Options, body: ImageToImageBody) -> tuple[Asked, list[Drawing]]:
    """Read a body. Raises LDMError for what cannot be drawn."""
    asked = read_body(server, options, body)
    check_fields(asked, body)
    asked.arguments["strength"] = body.denoising_strength
    add_image_guidance(asked, body)
    most = server.limits.upload_pixels
    images = [
        load_image(read_upload(each, f"init_images {number}", most))
        for number, each in enumerate(body.init_images, 1)
    ]
    mask = None if body.mask is None else read_mask(body, most)
    drawings = []
    for image in images:
        add_image(asked, body, image, mask)
        if not drawings:
            add_scripts(asked, asked.arguments["image"])
        drawings += each_drawing(asked, body, len(images), len(drawings))
    return asked, in_order(drawings, len(images))


def each_drawing(asked: Asked, body: ImageToImageBody, images: int, done: int) -> list[Drawing]:
    """Return the drawings that start from one image: all at once if there is no other."""
    if images == 1:
        return [asked.drawing()]
    first = done // body.n_iter  # the image's number
    return [asked.drawing(**alone(asked, first + i * images)) for i in range(body.n_iter)]


def alone(asked: Asked, index: int) -> dict[str, Any]:
    """Return the arguments of the picture of a number alone."""
    counted = "variation_seed" if "variation_seed" in asked.arguments else "seed"
    return {"num_images_per_prompt": 1, counted: asked.arguments[counted] + index}


def in_order(drawings: list[Drawing], images: int) -> list[Drawing]:
    """Return drawings in order of their seeds: they are sorted by image."""
    each = len(drawings) // images
    return [drawings[i * each + j] for j in range(each) for i in range(images)]


def check_fields(asked: Asked, body: ImageToImageBody) -> None:
    """Raise ServerError for what is missing or not done here."""
    count = len(body.init_images)
    if not count:
        asked.refuse("init_images", "is missing; send a picture to start from")
    if count > 1:
        if count > body.batch_size:
            asked.refuse(
                "init_images", f"has {count} pictures for batch_size {body.batch_size}; send fewer"
            )
        body.batch_size = count  # as A1111 does
    if body.resize_mode == 3:
        asked.refuse("resize_mode", "is 3, which enlarges latents; give 0, 1 or 2")
    if body.mask is not None and body.inpainting_fill in LATENT_FILLS:
        words = LATENT_FILLS[body.inpainting_fill]
        asked.refuse("inpainting_fill", f"is {body.inpainting_fill}, {words}; give 0 or 1")
    blur = blur_of(body)
    if not 0 <= blur <= MAX_BLUR:
        asked.refuse("mask_blur", f"is {blur:g}; it must be in [0, {MAX_BLUR}] pixels")
    if body.mask_blur is None and body.mask_blur_x != body.mask_blur_y:
        asked.refuse("mask_blur_x", "and mask_blur_y differ; give mask_blur")


def blur_of(body: ImageToImageBody) -> float:
    """Return the radius by which the mask is softened."""
    return body.mask_blur_x if body.mask_blur is None else body.mask_blur


def add_image_guidance(asked: Asked, body: ImageToImageBody) -> None:
    """Add ``image_cfg_scale`` for models that edit; A1111 ignores it for others."""
    model = asked.server.model
    pipe = model.pipe if model.name == asked.model else None
    if body.image_cfg_scale is None:
        return
    if pipe is not None and pipe.edits:
        asked.arguments["image_guidance_scale"] = body.image_cfg_scale
    else:
        asked.notes.append("image_cfg_scale: this model does not edit by instructions")


def read_mask(body: ImageToImageBody, most: int) -> Image.Image:
    """Return the mask, "L": white is drawn anew; of a transparent one, what is opaque."""
    layer = load_layer(read_upload(body.mask or "", "mask", most))
    if layer.mode == "RGBA":
        white = layer.getchannel("A").point(lambda alpha: 255 if alpha > OPAQUE else 0)
    else:
        white = layer.convert("L")
    return ImageOps.invert(white) if body.inpainting_mask_invert else white


def add_image(
    asked: Asked, body: ImageToImageBody, image: Image.Image, mask: Image.Image | None
) -> None:
    """Add what a picture starts from, and which part of it is drawn."""
    blur = blur_of(body)
    if mask is not None and mask.size != image.size:
        mask = stretch(mask, image.height, image.width)
    if mask is not None and body.inpaint_full_res:
        width, height = size_of(asked)
        padding = body.inpaint_full_res_padding
        region = masked_region(image, mask, width, height, padding, blur)
        asked.names["region"] = region
        soft = region.crop(region.mask, width, height)
        image, mask = (region.crop(one, width, height) for one in (image, mask))
    else:
        width = image.width // 8 * 8 if body.width is None else body.width
        height = image.height // 8 * 8 if body.height is None else body.height
        check_pixels(width, height, asked.server.limits)
        image = resized(asked, image, width, height)
        mask = None if mask is None else resized(asked, mask, width, height)
        soft = None if mask is None else mask.filter(ImageFilter.GaussianBlur(blur))
    if soft is not None and body.inpainting_fill == FILL:
        image = fill_masked(image, soft)
    asked.arguments |= {"image": image, "width": width, "height": height}
    if mask is not None:
        asked.arguments |= {"mask_image": mask.convert("RGB"), "mask_blur": blur}


def resized(asked: Asked, picture: Image.Image, width: int, height: int) -> Image.Image:
    """Return a picture at the size to draw, as ``resize_mode`` says."""
    body = asked.body
    assert isinstance(body, ImageToImageBody)
    if min(width, height) < 1:
        asked.refuse("width", f"and height are {width}x{height}; they must be at least 8")
    if picture.size == (width, height):
        return picture
    if body.resize_mode == 0:
        return stretch(picture, height, width)
    return (crop_and_resize if body.resize_mode == 1 else resize_and_fill)(picture, width, height)
