"""Diffusers' arguments of a call: ``callback_on_step_end`` and ``return_dict``, on our stream."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ldm.errors import ArgumentError
from ldm.output import Output
from ldm.run import Progress


def check_inputs(inputs: Sequence[str] | None) -> None:
    """Raise ArgumentError if a callback asks for other tensors than there are."""
    for name in inputs or ():
        if name != "latents":
            raise ArgumentError(
                f"callback_on_step_end_tensor_inputs names {name!r}; here a callback can have "
                "'latents'"
            )


def call_back(
    pipe: Any, callback: Callable[..., Any], progress: Progress, inputs: Sequence[str] | None
) -> None:
    """Call diffusers' ``callback_on_step_end`` after a step.

    It gets the latents at unit scale, ``Progress.latents``, and may return others to go on with,
    except after the last step. Raises ArgumentError for what cannot be used.
    """
    given: dict[str, Tensor] = {}
    if inputs is None or "latents" in inputs:
        given["latents"] = progress.latents
    returned = callback(pipe, progress.step - 1, progress.t, dict(given))
    if returned is None:
        return
    if not isinstance(returned, Mapping):
        raise ArgumentError(
            f"callback_on_step_end returned a {type(returned).__name__}; expected callback_kwargs"
        )
    for name, value in returned.items():
        if name in given and value is given[name]:
            continue
        if name != "latents" or not isinstance(value, Tensor):
            raise ArgumentError(
                f"callback_on_step_end returned {name!r}; only other 'latents' can be used here"
            )
        if value.shape != progress.latents.shape or progress.output is not None:
            raise ArgumentError(
                f"callback_on_step_end returned latents {tuple(value.shape)} after step "
                f"{progress.step} of {progress.steps}; expected {tuple(progress.latents.shape)}, "
                "before the last step"
            )
        progress.latents.copy_(value)


def as_tuple(output: Output, xl: bool) -> tuple[Any, ...]:
    """Return what diffusers' pipelines return with ``return_dict=False``."""
    return (output.images,) if xl else (output.images, None)  # None: no safety checker looked
