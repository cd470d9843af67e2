"""The sampling loop, written once; a method steps from one noise level to the next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from ldm.errors import ArgumentError

if TYPE_CHECKING:  # samplers stay importable without torch, so that `--help` can list them
    from torch import Tensor

    from ldm.scheduler import Level

MAX_SEED = 2**63 - 1  # of PyTorch's generators


class Denoised(NamedTuple):
    """What a denoiser returns for x at a level; each tensor is float32 and shaped like x."""

    x0: Tensor  # x̂₀, before the gradient shifts it
    variance: Tensor | None = None  # v, of a network that predicts its variance too
    gradient: Tensor | None = None  # of the log-probability that a guidance raises

    def guided(self, level: Level) -> Tensor:
        """Return x̂₀ + σ²/α g, which belongs to ε̂ − σ g, for the gradient g.

        Source: Dhariwal & Nichol 2021, eq. 14 and algorithm 2. At α = 0, x does not depend on
        a class.
        """
        if self.gradient is None or not level.alpha:
            return self.x0
        return self.x0.add(self.gradient, alpha=level.sigma**2 / level.alpha)


Denoise = Callable[["Tensor", "Level"], Denoised]
DrawNoise = Callable[[], "Tensor"]  # draws fresh ε ~ N(0, I), shaped like x
Pair = tuple["Level", "Level"]  # (from, to)


@dataclass
class Method(ABC):
    """A sampling method during one run: its settings, and its state between steps."""

    denoise: Denoise
    noise: DrawNoise

    @abstractmethod
    def step(self, x: Tensor, a: Level, b: Level) -> tuple[Tensor, Tensor]:
        """Move x from level a to level b; return it with the x̂₀ found on the way."""

    def x0(self, x: Tensor, level: Level) -> Tensor:
        """Return x̂₀ with the gradient of a guidance in it, as most methods use it."""
        return self.denoise(x, level).guided(level)


NewMethod = Callable[[Denoise, DrawNoise], Method]


def sample(
    new_method: NewMethod,
    denoise: Callable[[Tensor, Level, int], Denoised],
    x: Tensor,
    steps: Iterable[Pair],
    noise: DrawNoise,
    after: Callable[[Tensor, Level], Tensor] = lambda x, level: x,
) -> Iterator[tuple[Tensor, int, Tensor]]:
    """Yield (x, index, x̂₀) after each step; the last x is the result.

    Args:
        new_method: makes the method's object of this run; from ``ldm.samplers.bind``.
        denoise: (x, level, number of the step from 1) → ``Denoised``, whatever the network
            predicts. All calls within a step pass the same number.
        x: latents (B, C, H, W) at the first level of `steps`, float32.
        steps: (from, to) levels, from ``ldm.samplers.plan``; image-to-image passes ``steps[k:]``.
        noise: draws fresh noise like x; called only by methods that add noise.
        after: (x, level) → x after each step; inpainting blends the known part in here.
    """
    number = 0

    def denoise_now(x: Tensor, level: Level) -> Denoised:
        return denoise(x, level, number)

    method = new_method(denoise_now, noise)
    for number, (a, b) in enumerate(steps, start=1):
        x, x0 = method.step(x, a, b)
        x = after(x, b)
        yield x, number - 1, x0


def start_index(num_inference_steps: int, strength: float) -> int:
    """Return the index k of the first step that image-to-image runs: ``steps[k:]``.

    ``min(int(n·strength), n)`` steps run, as in diffusers, but at least one when strength > 0;
    none at strength 0 (k = n). Raises ArgumentError for a strength outside [0, 1].
    """
    if not 0 <= strength <= 1:  # also catches NaN
        raise ArgumentError(
            f"strength is {strength}; it must be in [0, 1]: 0 keeps the image, 1 redraws it"
        )
    run = min(int(num_inference_steps * strength), num_inference_steps)
    return num_inference_steps - (max(run, 1) if strength else 0)
