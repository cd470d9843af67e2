"""The network's predictions at every step, for whoever wants to see what guidance does.

    def show(seen: Predictions) -> None:
        print(seen.level.t, (seen.cond - seen.uncond).norm())

    with observe_predictions(pipe.unet, show):
        pipe("a red car", seed=1)

An observer sees what the run computes anyway, so that pictures stay bit-identical and nothing is
computed twice. Methods of second order call the network more than once in a step.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar

from ldm.denoiser import Observer
from ldm.unet import UNet

OBSERVED: ContextVar[tuple[tuple[UNet, Observer], ...]] = ContextVar("OBSERVED", default=())


@contextlib.contextmanager
def observe_predictions(unet: UNet, observer: Observer) -> Iterator[None]:
    """Call ``observer`` after each U-Net call of the runs whose steps this thread begins inside.

    unet: the model's own. The tensors are those that the run works on, so the observer must not
    change them.
    """
    token = OBSERVED.set((*OBSERVED.get(), (unet, observer)))
    try:
        yield
    finally:
        OBSERVED.reset(token)


def observers_of(unet: UNet) -> list[Observer]:
    """Return who observes the runs of a U-Net here."""
    return [observer for observed, observer in OBSERVED.get() if observed is unet]
