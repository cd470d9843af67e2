"""What txt2img and img2img have in common: a body → arguments of a drawing."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from ldm.samplers import SAMPLERS
from ldm.samplers.names import find_sampler, find_schedule
from ldm.server.drawing import MOST_SEED, Drawing, check_pixels
from ldm.server.errors import ServerError
from ldm.server.routes.a1111.bodies import REFUSED, SAME, DrawBody
from ldm.server.routes.a1111.options import CHECKPOINT, Options, changed, find_model
from ldm.server.routes.a1111.styles import apply_styles, read_styles
from ldm.server.state import Server
from ldm.text.lora_tags import split_tags

AUTOMATIC = ("", "automatic", "none")
# The schedules that "Automatic" is of A1111's samplers; of the others, the model's own.
PREFERRED = {
    "dpm2": "karras",
    "dpm2_a": "karras",
    "dpmpp_2m": "karras",
    "dpmpp_sde": "karras",
    "dpmpp_2s_a": "karras",
    "dpmpp_2m_sde": "exponential",
    "dpmpp_3m_sde": "exponential",
}
# Samplers whose η is 1 here; in A1111 it may be another.
ANCESTRAL = ("euler_a", "dpm2_a", "dpmpp_2s_a", "dpmpp_sde", "dpmpp_2m_sde", "dpmpp_3m_sde")


@dataclass
class Asked:
    """What a client asks for, as it is being read.

    Attributes:
        arguments: of ``LargeRequest``. model: a listed name. options: with ``override_settings``.
        prompts: the prompt and the negative prompt with styles, as they are recorded.
        notes: what has no effect here. names: what ``make_drawing`` takes besides.
        maps: pictures that ControlNets read, to be sent, too.
    """

    server: Server
    body: DrawBody
    options: Options
    model: str
    prompts: tuple[str, str]
    arguments: dict[str, Any]
    notes: list[str] = field(default_factory=list)
    names: dict[str, Any] = field(default_factory=dict)
    maps: list[Any] = field(default_factory=list)

    def drawing(self, **more: Any) -> Drawing:
        """Return it as a drawing; ``more`` are further arguments. Raises as ``make_drawing``."""
        return self.server.make_drawing({**self.arguments, **more}, model=self.model, **self.names)

    def refuse(self, name: str, words: str) -> None:
        """Raise ServerError for a field."""
        raise ServerError(f"{name} {words}", name, 422)


def read_body(server: Server, options: Options, body: DrawBody) -> Asked:
    """Read the fields that txt2img and img2img have in common.

    options: of the server, without ``override_settings``.
    Raises LDMError for what cannot be drawn.
    """
    notes = [f"{name}: no such field" for name in body.model_extra or ()]
    refuse_fields(body)
    overrides = body.override_settings
    model = server.current
    if overrides.get(CHECKPOINT):
        model = find_model(server, overrides[CHECKPOINT])
    options = changed(options, overrides, notes)
    styles = read_styles(server.settings.model_dir) if body.styles else {}
    prompt, negative = apply_styles(body.styles, styles, (body.prompt, body.negative_prompt))
    asked = Asked(server, body, options, model, (prompt, negative), {}, notes)
    sampler, schedule = read_sampler(body.sampler_name or body.sampler_index, body.scheduler)
    asked.arguments = {
        "prompt": split_tags(prompt)[0] if body.disable_extra_networks else prompt,
        "negative_prompt": negative,
        "num_images_per_prompt": body.count,
        "num_inference_steps": body.steps,
        "guidance_scale": body.cfg_scale,
        "width": body.width,
        "height": body.height,
        "sampler": sampler,
        "schedule": schedule,
        "seed": secrets.randbelow(MOST_SEED) if body.seed < 0 else body.seed,
        "tiling": body.tiling,
        "clip_skip": options.CLIP_stop_at_last_layers - 1,
        "eta": read_eta(asked, sampler),
    }
    if body.subseed_strength:
        picked = secrets.randbelow(MOST_SEED) if body.subseed < 0 else body.subseed
        asked.arguments["variation_seed"] = picked
        asked.arguments["variation_strength"] = body.subseed_strength
    note_ignored(asked)
    return asked


def refuse_fields(body: DrawBody) -> None:
    """Raise ServerError for fields that would change the picture and are not done here."""
    for name, harmless in REFUSED.items():
        value = getattr(body, name, harmless[0])
        if value not in harmless and not (name.startswith("seed_") and value < 0):
            raise ServerError(
                f"{name} is {value!r:.60}, which is not done here; leave it out, or give "
                f"{harmless[0]!r}",
                name,
                422,
            )
    if body.script_name not in SAME:
        raise ServerError(
            f"script_name is {body.script_name!r:.60}; there are no scripts here, and of "
            "alwayson_scripts only controlnet",
            "script_name",
            422,
        )


def note_ignored(asked: Asked) -> None:
    """Note fields that have no effect."""
    body, folder = asked.body, asked.server.settings.output_dir
    if body.save_images and folder is None:
        asked.notes.append("save_images: this server has no folder of pictures (--output-dir)")
    if body.script_args:
        asked.notes.append("script_args: there are no scripts here")
    if body.force_task_id:
        asked.notes.append("force_task_id: progress is that of the client's own pictures")
    if body.comments:
        asked.notes.append("comments: the settings in the files are ours")


def read_sampler(name: str, scheduler: str | None) -> tuple[str, str | None]:
    """Return our (sampler, schedule) of A1111's names; None is the model's own schedule.

    "Automatic" is what A1111 prefers for the sampler. Raises ArgumentError with the nearest names.
    """
    sampler, schedule = find_sampler(name)
    if scheduler is not None and scheduler.strip().lower() not in AUTOMATIC:
        return sampler, find_schedule(scheduler)
    return sampler, schedule or PREFERRED.get(sampler)


def read_eta(asked: Asked, sampler: str) -> float:
    """Return η of samplers that have it. Raises ServerError where another one was meant."""
    eta = asked.body.eta
    if SAMPLERS[sampler].eta:
        return 0.0 if eta is None else eta
    if sampler in ANCESTRAL and eta not in (None, 1):
        asked.refuse("eta", f"is {eta:g}; {SAMPLERS[sampler].label} has 1 here; leave it out")
    if sampler not in ANCESTRAL and eta not in (None, 0, 1):
        asked.notes.append(f"eta: {SAMPLERS[sampler].label} has none")
    return 0.0


def size_of(asked: Asked) -> tuple[int, int]:
    """Return the (width, height) to draw at: as given, else the model's own if it is loaded."""
    given, model = asked.body, asked.server.model
    own = (None, None)
    if model.name == asked.model and model.pipe is not None:
        own = model.pipe.default_size()[::-1]
    width = given.width if given.width is not None else own[0]
    height = given.height if given.height is not None else own[1]
    if width is None or height is None:
        asked.refuse("width", "and height are needed here, as the model is not loaded yet")
    assert width is not None and height is not None
    check_pixels(width, height, asked.server.limits)
    if min(width, height) < 1:
        asked.refuse("width", f"and height are {width}x{height}; they must be at least 8")
    return width, height
