"""Where the randomness of a picture comes from: CPU generators, one for each picture of a call."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from numbers import Integral

import torch
from torch import Tensor

from ldm.errors import ArgumentError

MAX_SEED = 2**63 - 1


class Noise:
    """Draws ε ~ N(0, I), float32 on the CPU: neither batch size nor device changes a picture.

    Attributes:
        shape: (B, C, h, w) of a draw.
        seeds: the seed of each picture; None where generators were given.
        separate: whether each picture has a generator of its own.
    """

    def __init__(
        self,
        shape: tuple[int, int, int, int],
        seed: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
    ) -> None:
        """Picture i has seed + i; without a seed, one is picked.

        A single generator serves the whole batch, as in diffusers. Raises ArgumentError for a seed
        and a generator together, a seed out of range, or too few or many generators.
        """
        self.shape = shape
        count = shape[0]
        if generator is not None and seed is not None:
            raise ArgumentError("seed and generator are both given; one of them decides")
        self.seeds: list[int | None] = [None] * count
        self.separate = not isinstance(generator, torch.Generator)
        if generator is None:
            seed = secrets.randbelow(2**32) if seed is None else seed
            if not isinstance(seed, Integral) or not 0 <= seed <= MAX_SEED - count:
                raise ArgumentError(
                    f"seed is {seed!r}; it must be a whole number in [0, 2^63 - {count + 1}]"
                )
            self.seeds = [int(seed) + i for i in range(count)]
            self.generators = [torch.Generator().manual_seed(s) for s in self.seeds]
        else:
            self.generators = list(generator) if self.separate else [generator]
            if self.separate and len(self.generators) != count:
                raise ArgumentError(
                    f"generator holds {len(self.generators)} generators for {count} pictures"
                )

    def __call__(self, count: int | None = None) -> Tensor:
        """ε like ``shape``; with ``count``, for that many pictures (a single generator's only)."""
        rest = self.shape[1:]
        if self.separate:
            return torch.cat([torch.randn((1, *rest), generator=each) for each in self.generators])
        return torch.randn(
            (self.shape[0] if count is None else count, *rest), generator=self.generators[0]
        )
