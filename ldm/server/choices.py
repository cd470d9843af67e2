"""What a user can choose from: models and other files by name, samplers, preprocessors."""

from __future__ import annotations

from typing import Any

from ldm.control.preprocessors import PREPROCESSORS
from ldm.pipeline import Pipeline
from ldm.samplers import SAMPLERS, SCHEDULES
from ldm.server.library import BUILT_IN
from ldm.server.state import Server

FEW = 8  # steps of a model that was distilled, at most


def choices(server: Server) -> dict[str, Any]:
    """Return the names and labels of all that a request can name.

    "defaults", "able" and "own_few_steps" (how many, with the LoRA in the model's folder) are of
    the model in memory, "loaded"; null if there is none.
    """
    library, pipe = server.library, server.model.pipe
    few = None if pipe is None else pipe.own_few_steps
    return {
        "current": server.current,
        "built_in": BUILT_IN,
        "models": list(library.models),
        "loras": list(library.loras),
        "controlnets": list(library.controlnets),
        "samplers": {name: one.label for name, one in SAMPLERS.items()},
        "schedules": {name: one.label for name, one in SCHEDULES.items()},
        "preprocessors": list(PREPROCESSORS),
        "loaded": server.model.name,
        "defaults": None if pipe is None else defaults(pipe),
        "able": None if pipe is None else able(pipe),
        "own_few_steps": None if few is None else few.num_inference_steps,
        "limits": {"pictures": server.limits.pictures, "steps": server.limits.steps},
    }


def defaults(pipe: Pipeline) -> dict[str, Any]:
    """Return the arguments that a model uses where a request leaves them out.

    few_steps: whether it was distilled to so few steps as live mode needs.
    """
    height, width = pipe.default_size()
    many = pipe.many_steps  # a draft may be under way in few
    own = pipe.defaults if many is None else many[1]
    steps = own.num_inference_steps
    return {
        "width": width,
        "height": height,
        "num_inference_steps": steps,
        "guidance_scale": own.guidance_scale,
        "few_steps": steps <= FEW,
    }


def able(pipe: Pipeline) -> dict[str, bool]:
    """Return what a model comes with."""
    return {
        "controlnet": pipe.own_controlnet is not None,
        # Its own is loaded when it is first needed.
        "ip_adapter": bool(pipe.ip_adapters) or pipe.own_ip_adapter is not None,
    }
