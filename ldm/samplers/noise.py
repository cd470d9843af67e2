"""The randomness of pictures: CPU generators, one for each picture of a call."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.samplers.loop import MAX_SEED


class Noise:
    """Draw ε ~ N(0, I), float32 on the CPU: neither batch size nor device changes a picture.

    Attributes:
        shape: (B, C, h, w) of a draw.
        seeds: the seed of each picture; None of a generator that has drawn before, or of one for
            several pictures: no seed draws the same.
        variation_seeds: the second seed of each picture's first noise, if there is one.
        separate: whether each picture has a generator of its own.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        seed: int | Sequence[int] | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        variation_seed: int | None = None,
        variation_strength: float = 0.0,
    ) -> None:
        """Seed one generator for each picture: picture i has seed + i, or seed[i] of a list.

        None picks a seed.

        variation_strength: in [0, 1], how far the first noise goes from seed's to variation_seed's.
        Above 0, as in A1111, all pictures have the one seed, and picture i variation_seed + i.
        A single generator serves the whole batch, as in diffusers. Raises ArgumentError for a seed
        and a generator together, a seed out of range, or too few or many generators.
        """
        self.shape = shape
        count = shape[0]
        if not 0 <= variation_strength <= 1:
            raise ArgumentError(
                f"variation_strength is {variation_strength}; it must be in [0, 1]: "
                "0 is the seed's own picture, 1 the variation_seed's"
            )
        if variation_strength and variation_seed is None:
            raise ArgumentError("variation_strength is given, but no variation_seed")
        if variation_strength and not isinstance(seed, Integral | None):
            raise ArgumentError("variation_seed goes from one seed, not from a list of them")
        if variation_strength and generator is not None:
            raise ArgumentError("variation_seed needs a seed, not a generator")
        self.variation_strength = variation_strength
        self.variation_seeds: list[int] = []
        if variation_strength:
            first = check_seed("variation_seed", variation_seed, count)
            self.variation_seeds = [first + i for i in range(count)]
        if generator is not None and seed is not None:
            raise ArgumentError("seed and generator are both given; one of them decides")
        self.seeds: list[int | None] = [None] * count
        self.separate = not isinstance(generator, torch.Generator)
        if generator is None:
            if isinstance(seed, Sequence):
                seeds = [check_seed("seed", one, 1) for one in seed]
            else:
                chosen = secrets.randbelow(2**32) if seed is None else seed
                first = check_seed("seed", chosen, count)
                seeds = [first if variation_strength else first + i for i in range(count)]
            self.seeds = [*seeds]
            self.generators = [torch.Generator().manual_seed(s) for s in seeds]
        elif isinstance(generator, torch.Generator):
            self.generators = [generator]
            self.seeds = [fresh_seed(generator)] if count == 1 else self.seeds
        else:
            self.generators = list(generator)
            self.seeds = [fresh_seed(one) for one in self.generators]
            if len(self.generators) != count:
                raise ArgumentError(
                    f"generator holds {len(self.generators)} generators for {count} pictures"
                )

    def first(self) -> Tensor:
        """Draw ε for the first level, turned towards the variation's."""
        eps = self()
        if not self.variation_strength:
            return eps
        generators = [torch.Generator().manual_seed(seed) for seed in self.variation_seeds]
        other = torch.cat([draw((1, *self.shape[1:]), each) for each in generators])
        return slerp(eps, other, self.variation_strength)

    def __call__(self, count: int | None = None) -> Tensor:
        """Draw ε like ``shape``, or for ``count`` pictures (with a single generator only)."""
        rest = self.shape[1:]
        if self.separate:
            return torch.cat([draw((1, *rest), each) for each in self.generators])
        rows = self.shape[0] if count is None else count
        return draw((rows, *rest), self.generators[0])


def draw(shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Draw N(0, I) on the CPU, whatever PyTorch's default dtype and device are."""
    return torch.randn(shape, generator=generator, dtype=torch.float32, device="cpu")


def slerp(a: Tensor, b: Tensor, t: float) -> Tensor:
    """Go from a (t = 0) to b (t = 1), both (B, …), on a great circle, which keeps the norm.

    Source: Shoemake 1985, "Animating rotation with quaternion curves", eq. 3.3.
    """
    dims = tuple(range(1, a.ndim))
    cosine = (a * b).sum(dims, keepdim=True)
    cosine = (
        cosine / (a.square().sum(dims, keepdim=True) * b.square().sum(dims, keepdim=True)).sqrt()
    )
    angle = cosine.double().clamp(-1, 1).acos()
    if not angle.sin().all():  # the same noise twice
        return a.lerp(b, t)
    near, far = ((1 - t) * angle).sin() / angle.sin(), (t * angle).sin() / angle.sin()
    return near.to(a) * a + far.to(a) * b


def fresh_seed(generator: torch.Generator) -> int | None:
    """Return the seed of a CPU generator that has drawn nothing yet; None of any other."""
    if not isinstance(generator, torch.Generator) or generator.device.type != "cpu":
        return None
    seed = generator.initial_seed()
    fresh = torch.Generator().manual_seed(seed).get_state().equal(generator.get_state())
    return seed if fresh and seed <= MAX_SEED else None


def check_seed(name: str, value: int | None, count: int) -> int:
    """Check that ``count`` seeds can count up from ``value``; raise ArgumentError if not."""
    if not isinstance(value, Integral) or not 0 <= value <= MAX_SEED - count:
        raise ArgumentError(
            f"{name} is {value!r}; it must be a whole number in [0, 2^63 - {count + 1}]"
        )
    return int(value)
