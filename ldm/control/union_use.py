"""A ControlNet-Union in one run: several pictures, each of a kind, with a scale and a range."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor

from ldm.control.steering import ControlUse
from ldm.control.union import ControlNetUnion


@dataclass(frozen=True, eq=False)
class UnionUse(ControlUse):
    """A ControlNet-Union in one run.

    The scale of a single picture is that of what the network adds, as of any ControlNet; of
    several, each is that of its picture's features, as in diffusers.

    Attributes:
        each: the use of each picture. modes: the numbers of their kinds.
    """

    each: tuple[ControlUse, ...] = ()
    modes: tuple[int, ...] = ()

    @classmethod
    def of(cls, each: list[ControlUse], modes: tuple[int, ...]) -> UnionUse:
        """Put the uses of one network's pictures together."""
        first, scales = each[0], [one.scale for one in each]
        scale = scales[0] if len(each) == 1 else float(any(scales))
        return cls(first.network, first.hint, scale, each=tuple(each), modes=modes)

    def covers(self, step: int, steps: int) -> bool:
        return any(one.covers(step, steps) for one in self.each)

    def factors(self, step: int, steps: int) -> tuple[float, ...]:
        if len(self.each) == 1:
            return (1.0,)
        return tuple(one.scale if one.covers(step, steps) else 0.0 for one in self.each)

    def embed(self, factors: tuple[float, ...], device: torch.device, dtype: torch.dtype) -> Tensor:
        network = cast(ControlNetUnion, self.network)
        hints = [one.hint.to(device, dtype) for one in self.each]
        return network.embed_hints(hints, self.modes, factors)

    def inputs(self, device: torch.device) -> dict[str, Tensor]:
        network = cast(ControlNetUnion, self.network)
        return {"control_type": network.control_type(self.modes).to(device)}
