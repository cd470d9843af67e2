"""Models that draw in few steps already: what a fine-tuning takes from them."""

from __future__ import annotations

import re
import warnings
from pathlib import Path

from ldm.errors import ArgumentError
from ldm.pipeline import Pipeline

SCHEDULERS = ("LCMScheduler", "TCDScheduler")
NAMES = re.compile(r"(?<![a-z])(lcm|tcd|turbo|lightning|hyper|schnell|dmd2?)(?![a-z])", re.I)
FEW = 8  # steps by default


def check_many_steps(pipe: Pipeline, base: str) -> None:
    """Warn of a base that was distilled to few steps, which a fine-tuning would undo.

    Raises ArgumentError for one whose U-Net reads the guidance scale (LCM, Luo et al. 2023), which
    a plain loss cannot train.
    """
    if pipe.unet.config.time_cond_proj_dim is not None:
        raise ArgumentError(
            f"options.base is {base}, an LCM whose U-Net reads the guidance scale; fine-tune the "
            "model that it was distilled from, then distil the result"
        )
    scheduler, steps = pipe.scheduler.config.sampler_class, pipe.defaults.num_inference_steps
    name = NAMES.search(Path(base).name)
    reason = None
    if scheduler in SCHEDULERS:
        reason = f"its scheduler is {scheduler}"
    elif steps <= FEW:
        reason = f"it draws in {steps} steps"
    elif name is not None:
        reason = f"its name holds {name[0]!r}"
    if reason is not None:
        warnings.warn(
            f"{base} seems to be distilled to few steps ({reason}); fine-tuning it makes pictures "
            "of few steps blurred. Train with the model that it was made of",
            stacklevel=3,
        )
