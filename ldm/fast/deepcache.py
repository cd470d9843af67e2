"""DeepCache: most steps run the finest layers only, on deep features of an earlier step.

Source: Ma et al. 2023, "DeepCache: Accelerating diffusion models for free", section 3.2 and eq. 9:
between neighbouring steps the coarse levels' output hardly changes. Not exact, so off by default.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from ldm.errors import ArgumentError
from ldm.fast.replace import with_children, with_hook
from ldm.layers import ResnetBlock
from ldm.unet import Residuals, UNet, UNetBlock


class Features(NamedTuple):
    """Deep features, and the inputs of the call that computed them."""

    shape: torch.Size  # of x
    context: Tensor | None
    class_labels: Tensor | None
    deep: Tensor

    def fit(self, x: Tensor, context: Tensor | None, class_labels: Tensor | None) -> bool:
        """Whether they are of the same pictures, texts and classes."""
        return (
            self.shape == x.shape and self.context is context and self.class_labels is class_labels
        )


class DeepCache:
    """A U-Net to call in the place of ``unet``, whose modules it shares; of one run.

    Every ``every``-th step, from the first, is a whole one. The others compute only ``branch``
    layers of the finest level on the way down, and the ``branch`` + 1 that read them on the way up.
    """

    def __init__(self, unet: UNet, every: int, branch: int = 0) -> None:
        """Split the U-Net. Raises ArgumentError for numbers that do not work."""
        layers = unet.config.layers[0]
        if every < 1:
            raise ArgumentError(f"deep_cache is {every}; it must be at least 1, which is off")
        if not 0 <= branch <= layers - 1:
            raise ArgumentError(
                f"deep_cache_branch is {branch}; this model has branches 0 to {layers - 1}"
            )
        self.unet, self.config, self.every, self.branch = unet, unet.config, every, branch
        self.steps = 0
        self.features: list[Features] = []  # of each call of the last whole step
        first, last = cast(UNetBlock, unet.down_blocks[0]), cast(UNetBlock, unet.up_blocks[-1])
        # The first layer that a short step computes.
        entry = cast(ResnetBlock, last.resnets[-branch - 1])
        self.deep = entry.conv1.in_channels - unet.config.block_out_channels[0]
        watched = with_hook(entry, self._remember, before=True)
        layers_up = [watched if layer is entry else layer for layer in last.resnets]
        whole = with_children(last, resnets=nn.ModuleList(layers_up))
        self.whole = with_children(
            unet, up_blocks=nn.ModuleList([*list(unet.up_blocks)[:-1], whole])
        )
        down = [_part(first, slice(branch))] if branch else []
        self.middle = _Known()
        self.short = with_children(
            unet,
            down_blocks=nn.ModuleList(down),
            mid_block=self.middle,
            up_blocks=nn.ModuleList([_part(last, slice(-branch - 1, None))]),
        )

    def next_step(self) -> None:
        """Count a step of the sampler, however often it called."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.features.clear()

    def parameters(self) -> Iterator[nn.Parameter]:
        """As ``UNet.parameters``."""
        return self.unet.parameters()

    def reads_finest(
        self, x: Tensor, context: Tensor | None = None, class_labels: Tensor | None = None, **_: Any
    ) -> bool:
        """Whether the next call with these reads the skip connection of conv_in alone."""
        known = any(one.fit(x, context, class_labels) for one in self.features)
        return known and self.branch == 0 and self.every > 1

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        residuals: Residuals | None = None,
        features: Sequence[Tensor] = (),
        **conditioning: Any,
    ) -> Tensor:
        """As ``UNet.forward``. A call with other tensors than before is computed whole.

        Short steps end before the finest level's feature is added; the deep ones hold it already.
        """
        conditioning |= {"context": context, "class_labels": class_labels}
        if self.every == 1:
            return self.unet(x, t, residuals=residuals, features=features, **conditioning)
        for known in self.features:
            if known.fit(x, context, class_labels):
                self.middle.x = known.deep
                if residuals is not None:  # of the fine layers; the deep features have theirs
                    residuals = Residuals(residuals.skips[: self.branch + 1], None)
                return self.short(x, t, residuals=residuals, **conditioning)
        result = self.whole(x, t, residuals=residuals, features=features, **conditioning)
        self.features.append(Features(x.shape, context, class_labels, self.remembered))
        return result

    def _remember(self, _: nn.Module, inputs: tuple[Any, ...]) -> None:
        """Keep what the entry reads of the coarser levels; its other channels are the skip's."""
        self.remembered = inputs[0][:, : self.deep].clone()


class _Known(nn.Module):
    """Give what all coarser levels together gave before."""

    x: Tensor

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.x


def _part(block: UNetBlock, layers: slice) -> UNetBlock:
    """Make a block of some of another's layers, without its change of resolution."""
    return with_children(
        block,
        resnets=nn.ModuleList(list(block.resnets)[layers]),
        attentions=nn.ModuleList(list(block.attentions)[layers]),
        downsamplers=nn.ModuleList(),
        upsamplers=nn.ModuleList(),
    )
