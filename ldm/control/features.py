"""What T2I-Adapters add to the U-Net's activations in a run: features, computed once.

They depend on the picture alone, so that all steps and all rows of guidance share them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import torch
from torch import Tensor

from ldm.config.picture_readers import T2I_ADAPTER
from ldm.control.hints import Pictures, per_network, to_size
from ldm.control.t2i_adapter import T2IAdapter
from ldm.denoiser import UNetCall
from ldm.request import Request


@dataclass(frozen=True, eq=False)
class AdapterUse:
    """A T2I-Adapter in one run.

    Attributes:
        network, picture: (1 or B, in_channels, H, W) in [0, 1].
        scale: factor of what it adds.
        factor: fraction of the run's steps, from the first, in which it is used.
    """

    network: T2IAdapter
    picture: Tensor
    scale: float = 1.0
    factor: float = 1.0

    def covers(self, step: int, steps: int) -> bool:
        """Whether it is used at a step, from 1, of so many; counted as diffusers does."""
        return self.scale != 0 and step <= int(steps * self.factor)


class AdapterFeatures:
    """All T2I-Adapters of a run: called for each U-Net call, it returns what is added there."""

    def __init__(self, uses: Sequence[AdapterUse], steps: int, dtype: torch.dtype) -> None:
        """Compute nothing yet. steps: of the run; dtype: of the U-Net's inputs."""
        self.uses, self.steps, self.dtype = list(uses), steps, dtype
        self._features: dict[int, list[Tensor]] = {}  # of each use, scaled
        self._sums: dict[tuple[int, ...], list[Tensor]] = {}  # of the uses that a step has

    @torch.no_grad()
    def __call__(self, call: UNetCall, step: int) -> list[Tensor]:
        """Return the features for the rows of a call, finest first; [] if none is used.

        Each is (1 or rows, channels, h, w). step: from 1.
        """
        used = tuple(i for i, use in enumerate(self.uses) if use.covers(step, self.steps))
        if used not in self._sums:
            each = [self._compute(i, call.pictures.device) for i in used]
            self._sums[used] = [sum_of(found) for found in zip_longest(*each)]
        return [y if len(y) == 1 else y[call.pictures] for y in self._sums[used]]

    def _compute(self, index: int, device: torch.device) -> list[Tensor]:
        if index not in self._features:
            use = self.uses[index]
            found = use.network(use.picture.to(device, self.dtype))
            self._features[index] = [y if use.scale == 1 else y * use.scale for y in found]
        return self._features[index]


def sum_of(features: Sequence[Tensor | None]) -> Tensor:
    """Add the features of one level, of the adapters that have it."""
    first, *others = (y for y in features if y is not None)
    for other in others:
        first = first + other
    return first


def adapter_uses(
    networks: Mapping[str, T2IAdapter],
    request: Request,
    pictures: Sequence[Pictures | None],
    size: tuple[int, int],
) -> list[AdapterUse]:
    """Return how each network is used in a run at (height, width), with pictures of that size.

    Raises ArgumentError for pictures of another number of channels, and for a number of values
    that does not fit the networks.
    """
    given = {
        "adapter_conditioning_scale": request.adapter_conditioning_scale,
        "adapter_conditioning_factor": request.adapter_conditioning_factor,
    }
    scales, factors = (
        per_network(name, value, len(networks), T2I_ADAPTER) for name, value in given.items()
    )
    uses = []
    for network, given_pictures, scale, factor in zip(
        networks.values(), pictures, scales, factors, strict=True
    ):
        if given_pictures is not None:
            (rows,), channels = given_pictures.rows, network.config.in_channels
            picture = to_size(rows, size, channels, request.repeats, T2I_ADAPTER)
            uses.append(AdapterUse(network, picture, scale, factor))
    return uses


def adapted_size(
    networks: Mapping[str, T2IAdapter], size: tuple[int, int] | None
) -> tuple[int, int] | None:
    """Return the (height, width) that a picture asks for: what all adapters divide, as diffusers.

    At least what the coarsest divides; None of None.
    """
    if size is None:
        return None
    factor = max((network.config.downscale_factor for network in networks.values()), default=1)
    return max(size[0] // factor, 1) * factor, max(size[1] // factor, 1) * factor
