"""DeepCache: most steps run the finest layers only, on deep features of an earlier step.

Source: Ma et al. 2023, "DeepCache: Accelerating diffusion models for free", section 3.2 and eq. 9:
between neighbouring steps the coarse levels' output hardly changes. Not exact: a mode to ask for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ldm.errors import ArgumentError
from ldm.fast.replace import M, with_state_of
from ldm.unet import UNet, UNetBlock


class DeepCache:
    """A U-Net to call in the place of ``unet``, whose modules it shares.

    Every ``every``-th step, from the first, is a whole one. The others compute only ``branch``
    layers of the finest level on the way down, and the ``branch`` + 1 that read them on the way up.
    """

    def __init__(self, unet: UNet, every: int, branch: int = 0) -> None:
        """Raises ArgumentError for numbers that do not work."""
        layers = unet.config.layers_per_block
        if every < 1:
            raise ArgumentError(f"deep_cache is {every}; it must be at least 1, which is off")
        if not 0 <= branch <= layers - 1:
            raise ArgumentError(
                f"deep_cache_branch is {branch}; this model has branches 0 to {layers - 1}"
            )
        self.unet, self.config, self.every = unet, unet.config, every
        self.steps = 0
        self.kept: list[tuple[tuple[Any, ...], Tensor]] = []  # (asked, deep features)
        last = unet.up_blocks[-1]
        self.entry = last.resnets[-branch - 1]  # the first layer that a short step computes
        self.deep = self.entry.conv1.in_channels - unet.config.block_out_channels[0]
        down = [_part(unet.down_blocks[0], slice(branch))] if branch else []
        self.middle = _Known()
        self.short = _with(
            unet,
            down_blocks=nn.ModuleList(down),
            mid_block=self.middle,
            up_blocks=nn.ModuleList([_part(last, slice(-branch - 1, None))]),
        )

    def next_step(self) -> None:
        """Tell that a step of the sampler is done, however often it asked."""
        self.steps += 1
        if self.steps % self.every == 0:
            self.kept.clear()

    def parameters(self) -> Iterator[nn.Parameter]:
        """As ``UNet.parameters``."""
        return self.unet.parameters()

    def __call__(
        self,
        x: Tensor,
        t: Tensor,
        context: Tensor | None = None,
        class_labels: Tensor | None = None,
        **told: Tensor,
    ) -> Tensor:
        """As ``UNet.forward``. What is asked with other tensors than before is computed whole."""
        told |= {"context": context, "class_labels": class_labels}
        if self.every == 1:
            return self.unet(x, t, **told)
        asked = (x.shape, context, class_labels)
        for before, deep in self.kept:
            if before[0] == x.shape and before[1] is context and before[2] is class_labels:
                self.middle.x = deep
                return self.short(x, t, **told)

        def keep(_: nn.Module, inputs: tuple[Any, ...]) -> None:
            # The other channels are the skip connection.
            self.kept.append((asked, inputs[0][:, : self.deep].clone()))

        handle = self.entry.register_forward_pre_hook(keep)
        try:
            return self.unet(x, t, **told)
        finally:
            handle.remove()


class _Known(nn.Module):
    """What all coarser levels together give: known already."""

    x: Tensor

    def forward(self, x: Tensor, *_: Any) -> Tensor:
        return self.x


def _part(block: UNetBlock, layers: slice) -> UNetBlock:
    """Some of a block's layers, without its change of resolution."""
    return _with(
        block,
        resnets=nn.ModuleList(list(block.resnets)[layers]),
        attentions=nn.ModuleList(list(block.attentions)[layers]),
        downsamplers=nn.ModuleList(),
        upsamplers=nn.ModuleList(),
    )


def _with(module: M, **children: nn.Module) -> M:
    """A module like another, of which it shares all children except these."""
    result = with_state_of(module, type(module))
    result._modules = module._modules | children
    return result
