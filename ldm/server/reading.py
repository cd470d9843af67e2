"""What a picture's file says of how it was drawn, as the body that draws it again."""

from __future__ import annotations

import dataclasses
from typing import Any

from ldm.images.generation_info import BUILT_IN, GenerationInfo, read_generation_info
from ldm.server.errors import UnknownNameError
from ldm.server.library import BUILT_IN as OWN_NAME
from ldm.server.library import Library
from ldm.server.schema import request_fields
from ldm.server.uploads import read_upload


def read_picture(library: Library, content: str, most_pixels: int) -> dict[str, Any]:
    """Read the settings in a picture's file (base64) as arguments of ``/api/draw``.

    Raises ServerError for what is no picture, ImageError for one that does not say how it was made.
    """
    image = read_upload(content, "image", most_pixels)
    info = read_generation_info(image)
    known = request_fields()
    arguments = {name: value for name, value in info.arguments.items() if name in known}
    arguments = {name: listed(value) for name, value in arguments.items() if value is not None}
    if "hires_scale" in arguments:
        arguments["hires"] = True
    if any(name.startswith("ip_adapter_") for name in arguments) and not info.ip_adapters:
        arguments = {n: v for n, v in arguments.items() if not n.startswith("ip_adapter_")}
    return {
        "arguments": arguments,
        "model": found_model(library, info.model),
        "written_model": info.model,
        "missing": [*info.images, *info.missing],
        "notes": [*info.notes, *unused(info, known)],
    }


def listed(value: Any) -> Any:
    """Return tuples as lists."""
    return [listed(one) for one in value] if isinstance(value, list | tuple) else value


def found_model(library: Library, name: str | None) -> str | None:
    """Return the listed name of the model that a file names; None if it is not here."""
    if name is None:
        return None
    try:
        return library.choose("model", library.models, OWN_NAME if name == BUILT_IN else name)
    except UnknownNameError:
        return None


def unused(info: GenerationInfo, known: Any) -> list[str]:
    """Name what the file says and a body cannot."""
    named = [name for name in info.arguments if name not in known]
    parts = ("refiner", "vae", "embeddings", "text_encoders", "t2i_adapters", "ip_adapters")
    for field in dataclasses.fields(info):
        value = getattr(info, field.name)
        if field.name in (*parts, "controlnets", "preprocessors", "grid", "template") and value:
            names = value if isinstance(value, str) else ", ".join(filter(None, value))
            named.append(f"{field.name}: {names}")
    return named
