"""A1111's options that mean something here, and their routes."""

from __future__ import annotations

import asyncio
import dataclasses
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from ldm.images.generation_info import MODEL_HASH
from ldm.server.errors import ServerError
from ldm.server.routes.a1111.answers import make_router
from ldm.server.routes.common import server_of
from ldm.server.state import Server
from ldm.server.store import FORMATS

router = make_router()
CHECKPOINT = "sd_model_checkpoint"
MOST_CLIP_SKIP = 12
# Options that would change pictures → the values with which they do not.
PICTURES: dict[str, tuple[Any, ...]] = {
    "sd_vae": ("Automatic", "None", "automatic", "none", ""),
    "sd_refiner_checkpoint": ("", "None"),
    "eta_noise_seed_delta": (0,),
    "randn_source": ("CPU",),
    "img2img_color_correction": (False,),
    "img2img_fix_steps": (False,),
    "initial_noise_multiplier": (1,),
    "inpainting_mask_weight": (1,),
    "token_merging_ratio": (0,),
    "sd_hypernetwork": ("", "None"),
    "s_churn": (0,),
    "s_noise": (1,),
    "s_min_uncond": (0,),
    "use_old_hires_fix_width_height": (False,),
    "comma_padding_backtrack": (20,),
    "tiling": (False,),
}
JPEG = {"jpg": "jpeg"}


@dataclass(frozen=True)
class Options:
    """Options, beside the model that draws, which is ``Server.current``."""

    CLIP_stop_at_last_layers: int = 1
    sd_vae: str = "Automatic"
    samples_format: str = "png"
    jpeg_quality: int = 95
    control_net_no_detectmap: bool = False

    @property
    def file_format(self) -> str:
        """The key of ``FORMATS``."""
        return JPEG.get(self.samples_format, self.samples_format)


NAMES = tuple(field.name for field in dataclasses.fields(Options))


def options_of(request: Request) -> Options:
    """Return the options of the server that a request is to."""
    found: Options = getattr(request.app.state, "a1111_options", Options())
    return found


def find_model(server: Server, title: Any) -> str:
    """Return the listed name of a model's title, name or file. Raises UnknownNameError."""
    if not isinstance(title, str):
        raise ServerError(f"{CHECKPOINT} is {title!r:.60}; give a model's title", CHECKPOINT)
    return server.library.model(MODEL_HASH.sub("", title))


def changed(options: Options, given: dict[str, Any], notes: list[str]) -> Options:
    """Return options with other values. Raises ServerError for what is not done here.

    given: A1111's names; the model is left to the caller. notes: gets what is ignored.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name == CHECKPOINT:
            continue
        harmless = PICTURES.get(name)
        if harmless is not None:
            if value not in harmless:
                raise ServerError(
                    f"the option {name!r:.60} cannot be {value!r:.60} here; leave it out, or give "
                    f"{harmless[0]!r}",
                    name,
                )
            if name in NAMES:
                values[name] = value
        elif name in NAMES:
            values[name] = checked(name, value)
        else:
            notes.append(f"the option {name!r:.60} means nothing here")
    return dataclasses.replace(options, **values)


def checked(name: str, value: Any) -> Any:
    """Return the value of one of ``Options``. Raises ServerError for one that it cannot have."""
    if name == "samples_format":
        kinds = [*FORMATS, *JPEG]
        if value not in kinds:
            raise ServerError(
                f"{name} is {value!r:.60}; it must be one of {', '.join(kinds)}", name
            )
        return value
    if name == "control_net_no_detectmap":
        if not isinstance(value, bool):
            raise ServerError(f"{name} is {value!r:.60}; it must be true or false", name)
        return value
    most = MOST_CLIP_SKIP if name == "CLIP_stop_at_last_layers" else 100
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or value not in range(most + 1)
    ):
        raise ServerError(f"{name} is {value!r:.60}; it must be in [1, {most}]", name)
    return max(int(value), 1)


@router.get("/options")
async def get_options(request: Request) -> dict[str, Any]:
    """Return the options that mean something here."""
    return {CHECKPOINT: server_of(request).current, **dataclasses.asdict(options_of(request))}


@router.post("/options")
async def set_options(request: Request, given: dict[str, Any]) -> dict[str, Any]:
    """Set options; a model is loaded now. The answer names what means nothing here."""
    server = server_of(request)
    notes: list[str] = []
    options = changed(options_of(request), given, notes)
    if CHECKPOINT in given:
        await use_model(server, find_model(server, given[CHECKPOINT]))
    request.app.state.a1111_options = options
    return {"ignored": notes} if notes else {}


async def use_model(server: Server, name: str) -> None:
    """Make a model that of the requests that name none. Raises CheckpointError."""
    await asyncio.to_thread(server.model.load, name)
    server.current = name


@router.post("/refresh-checkpoints")
async def refresh_checkpoints(request: Request) -> dict[str, Any]:
    """Look for new models."""
    await asyncio.to_thread(server_of(request).library.refresh)
    return {}


@router.post("/unload-checkpoint")
async def unload_checkpoint(request: Request) -> dict[str, Any]:
    """Free the model's memory, after the pictures that are being drawn."""
    await asyncio.to_thread(server_of(request).model.unload)
    return {}


@router.post("/reload-checkpoint")
async def reload_checkpoint(request: Request) -> dict[str, Any]:
    """Load the model again."""
    server = server_of(request)
    await asyncio.to_thread(server.model.load, server.current)
    return {}
