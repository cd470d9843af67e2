"""The sampling loop, written once; a method is a pure step from one noise level to the next."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from ldm.errors import ArgumentError

if TYPE_CHECKING:  # samplers stay importable without torch, so that `--help` can list them
    from torch import Tensor

    from ldm.scheduler import Level

Denoise = Callable[["Tensor", "Level"], "Tensor"]  # (x, level) → x̂₀, float32
Noise = Callable[[], "Tensor"]  # fresh ε ~ N(0, I), shaped like x
Pair = tuple["Level", "Level"]  # (from, to)


class Told(NamedTuple):
    """All that a denoiser can say of x, for the methods that have a use for it."""

    x0: Tensor  # x̂₀, without the gradient
    v: Tensor | None = None  # like x: where the variance lies, of a network that has learned it
    gradient: Tensor | None = None  # like x: of the log-probability that a guidance asks to raise


def tell(denoise: Denoise, x: Tensor, level: Level) -> Told:
    """What ``denoise.tell`` says, where there is such a thing; else x̂₀ alone."""
    full = getattr(denoise, "tell", None)
    return full(x, level) if full else Told(denoise(x, level))


class Step(Protocol):
    """One step of a method: x at level a → (x at level b, x̂₀).

    `past` is empty at the start of a run and belongs to the method: what it keeps between steps.
    """

    def __call__(
        self, denoise: Denoise, x: Tensor, a: Level, b: Level, past: list[Any], noise: Noise
    ) -> tuple[Tensor, Tensor]: ...


def sample(
    step: Step,
    denoise: Denoise,
    x: Tensor,
    steps: Iterable[Pair],
    noise: Noise,
    after: Callable[[Tensor, Level], Tensor] = lambda x, level: x,
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield (x, index, x̂₀) after each step; the last x is the result.

    Args:
        step: the method, from ``ldm.samplers.bind``.
        denoise: (x, level) → x̂₀, float32, whatever the network predicts.
        x: latents (B, C, H, W) at the first level of `steps`, float32.
        steps: (from, to) levels, from ``ldm.samplers.plan``; image-to-image passes ``steps[k:]``.
        noise: draws fresh noise like x; called only by methods that add noise.
        after: (x, level) → x after each step; inpainting blends the known part in here.
    """
    past: list[Any] = []
    for index, (a, b) in enumerate(steps):
        x, x0 = step(denoise, x, a, b, past, noise)
        x = after(x, b)
        yield x, index, x0


def start_index(num_inference_steps: int, strength: float) -> int:
    """Index k of the first step that image-to-image runs: ``steps[k:]``.

    ``min(int(n·strength), n)`` steps run, as in diffusers, but at least one when strength > 0;
    none at strength 0 (k = n). Raises ArgumentError for a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:  # also catches NaN
        raise ArgumentError(
            f"strength is {strength}; it must be in [0, 1]: 0 keeps the image, 1 redraws it"
        )
    run = min(int(num_inference_steps * strength), num_inference_steps)
    return num_inference_steps - (max(run, 1) if strength else 0)
