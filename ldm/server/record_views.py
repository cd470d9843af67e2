"""What a record shows: pictures and numbers of a step, and where a word's attention was."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch import Tensor

from ldm.images.sheets import heat_colours
from ldm.server import previews
from ldm.server.errors import ServerError, UnknownNameError
from ldm.server.recorder import Record, Step
from ldm.server.store import encode

SPREAD = 3.0  # latents of ±SPREAD are black and white: x_t has about the deviation 1
GAP = 1  # pixels between the channels of a sheet


def decoded(record: Record, x: Tensor) -> Image.Image:
    """Decode latents (C, h, w)."""
    return previews.decoded(record.model(), x[None])[0]


def rough(record: Record, x: Tensor) -> Image.Image:
    """Show latents (C, h, w) in rough colours, one pixel each."""
    return previews.rough(record.model(), x[None])


def channels(x: Tensor) -> Image.Image:
    """Show latents (C, h, w) as grey sheets side by side; ±3 are black and white."""
    grey = ((x / SPREAD + 1) / 2).clamp(0, 1).mul(255).round().byte().numpy()
    padded = np.pad(grey, ((0, 0), (0, 0), (0, GAP)))
    row = padded.transpose(1, 0, 2).reshape(grey.shape[1], -1)[:, :-GAP]
    alpha = np.pad(np.full_like(grey, 255), ((0, 0), (0, 0), (0, GAP)))
    alpha = alpha.transpose(1, 0, 2).reshape(grey.shape[1], -1)[:, :-GAP]
    return Image.merge("LA", [Image.fromarray(part) for part in (row, alpha)])


def x0_of(record: Record, step: Step, prediction: Tensor | None) -> Image.Image:
    """Decode the x̂₀ that follows from a prediction (C, h, w).

    Raises UnknownNameError for a step without guidance.
    """
    if prediction is None:
        raise UnknownNameError(
            f"step {step.number} has one prediction only: nothing was guided there", "view"
        )
    x0 = record.model().scheduler.to_x0(prediction, step.x, step.level)
    return decoded(record, x0)


def difference(record: Record, step: Step) -> Image.Image:
    """Show as a heat map how far guidance moves the prediction: |s (cond − uncond)|."""
    if step.uncond is None:
        return x0_of(record, step, None)  # which raises
    factor = record.model().vae.config.scale
    size = (step.x.shape[2] * factor, step.x.shape[1] * factor)
    _, colours = heat_colours((step.cond - step.uncond).norm(dim=0).numpy(), size)
    return Image.fromarray(colours.round().astype(np.uint8))


VIEWS: dict[str, Callable[[Record, Step], Image.Image]] = {
    "x0": lambda record, step: decoded(record, step.x0),
    "x0_rough": lambda record, step: rough(record, step.x0),
    "x0_uncond": lambda record, step: x0_of(record, step, step.uncond),
    "x0_cond": lambda record, step: x0_of(record, step, step.cond),
    "x0_guided": lambda record, step: x0_of(record, step, step.guided),
    "x_rough": lambda record, step: rough(record, step.x),
    "x_channels": lambda record, step: channels(step.x),
    "x0_channels": lambda record, step: channels(step.x0),
    "difference": difference,
}


def view(record: Record, number: int, name: str) -> bytes:
    """Return one of ``VIEWS`` of a step as a PNG. Raises UnknownNameError."""
    if name not in VIEWS:
        known = ", ".join(VIEWS)
        raise UnknownNameError(f"view {name!r:.60} is not known; there are: {known}", "view")
    return encode(VIEWS[name](record, record.step(number)))


def word_overlay(record: Record, index: int) -> bytes:
    """Return where a word's attention was, as a PNG to lay over the picture.

    It is clear where the attention is least. Raises UnknownNameError for a word that there is not.
    """
    if not 0 <= index < len(record.words):
        raise UnknownNameError(
            f"word {index} is not there; the prompt has {len(record.words)}, from 0", "word"
        )
    heat = record.words[index][1]
    factor = record.model().vae.config.scale
    mask, colours = heat_colours(heat.numpy(), (heat.shape[1] * factor, heat.shape[0] * factor))
    layers = np.concatenate([colours, 255 * (0.15 + 0.75 * mask[..., None])], axis=-1)
    return encode(Image.fromarray(layers.round().astype(np.uint8), "RGBA"))


def describe(record: Record) -> dict[str, Any]:
    """Describe a record in JSON: its steps, and the words of the prompt."""
    pipe = record.model()
    steps = list(record.steps.values())
    latents = list(steps[-1].x.shape)
    side = pipe.vae.config.scale
    return {
        "model": record.model_name,
        "ended": record.ended,
        "prediction_type": pipe.scheduler.config.prediction_type,
        "guidance_scale": record.scale,
        "dtype": str(record.dtype).removeprefix("torch."),
        "latents": latents,
        "factor": side,
        "small": latents[1] * latents[2] * side**2 <= previews.DECODED_PIXELS,  # decoded in no time
        "views": list(VIEWS),
        "steps": [
            {
                "step": step.number,
                "t": step.level.t,
                "alpha": step.level.alpha,
                "sigma": step.level.sigma,
                "guided": step.uncond is not None,
                "latents": list(step.x.shape),
            }
            for step in steps
        ],
        "words": [
            {"word": word, "most": float(heat.max()), "mean": float(heat.mean())}
            for word, heat in record.words
        ],
    }


def numbers(record: Record, number: int, row: int, column: int) -> dict[str, Any]:
    """Return the numbers of one latent pixel at a step: C of each tensor.

    rest: guided − (uncond + s (cond − uncond)), which is 0 unless more than classifier-free
        guidance is at work. scale: None where nothing is guided.
    Raises ServerError for a pixel that is outside.
    """
    step = record.step(number)
    _, height, width = step.x.shape
    if not (0 <= row < height and 0 <= column < width):
        raise ServerError(
            f"row {row} and column {column} are outside of the latents, {height} rows and "
            f"{width} columns",
            "row",
        )
    names = ("x", "uncond", "cond", "guided", "x0")
    tensors = {name: getattr(step, name) for name in names}
    found: dict[str, Any] = {
        name: None if part is None else [finite(n) for n in part[:, row, column].tolist()]
        for name, part in tensors.items()
    }
    rest = None
    if step.uncond is not None:
        uncond, cond = (part.to(record.dtype) for part in (step.uncond, step.cond))
        formula = uncond + record.scale * (cond - uncond)  # rounded as in the run
        rest = finite(float((step.guided - formula.float()).abs().max()))
    return {
        **found,
        "row": row,
        "column": column,
        "scale": None if step.uncond is None else record.scale,
        "rest": rest,
    }


def finite(number: float) -> float | None:
    """Return a number that JSON has; None for the others."""
    return number if math.isfinite(number) else None
