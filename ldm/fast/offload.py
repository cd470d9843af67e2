"""Parts of a model that wait in the CPU's memory, one of them on the GPU at a time.

Weights are copied there from pinned memory and dropped after use, never copied back: the copy in
the CPU's memory is the one that counts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn


class Offload:
    """Brings each of ``parts`` to ``device`` when it, or a child of it, is called.

    Meanwhile ``home`` holds the tensors of the part that is away. LoRAs change weights at home:
    call ``send_home`` before anything but the parts themselves reads them.
    """

    def __init__(self, parts: Sequence[nn.Module], device: torch.device) -> None:
        self.device, self.parts = device, parts
        self.away: nn.Module | None = None
        self.home: list[tuple[Tensor, Tensor]] = []  # (parameter or buffer, its data at home)
        self.hooks: list[Any] = []
        for part in parts:
            part.to("cpu")
            self.watch(part)

    def watch(self, part: nn.Module) -> None:
        """Have a part brought when it is called."""
        self.prepare(part, partial(self.bring, part))

    def prepare(self, module: nn.Module, before: Callable[[], object] | None = None) -> None:
        """Have ``before`` called before each call of a module or of a child of it."""
        for one in (module, *module.children()):
            self.hooks.append(one.register_forward_pre_hook(partial(self._enter, before)))

    def _enter(
        self, before: Callable[[], object] | None, _: nn.Module, inputs: tuple[Any, ...]
    ) -> tuple[Any, ...]:
        """Prepare a call of a module, whose inputs may be on the device of another."""
        if before is not None:
            before()
        return tuple(x.to(self.device) if torch.is_tensor(x) else x for x in inputs)

    def bring(self, part: nn.Module) -> None:
        """Bring a part to the device, and no other."""
        if part is self.away:
            return
        self.send_home()
        self.away = part
        for tensor in self.brought(part):
            data = tensor.data
            if self.device.type == "cuda" and not data.is_pinned():
                data = data.pin_memory()
            self.home.append((tensor, data))
            tensor.data = data.to(self.device, non_blocking=True, copy=True)

    def brought(self, part: nn.Module) -> list[Tensor]:
        """Return the tensors of a part that are brought."""
        return tensors_of([part])

    def send_home(self) -> None:
        """Take the part off the device. Waits for nothing: CUDA frees memory in order."""
        for tensor, data in self.home:
            tensor.data = data
        self.home.clear()
        self.away = None

    def end(self, device: torch.device) -> None:
        """Bring all parts to a device, to stay there."""
        self.send_home()
        for hook in self.hooks:
            hook.remove()
        for part in self.parts:
            part.to(device)


def tensors_of(modules: Iterable[nn.Module]) -> list[Tensor]:
    """Return the parameters and buffers of modules, each once."""
    every = (chain(module.parameters(), module.buffers()) for module in modules)
    return list({id(tensor): tensor for tensor in chain.from_iterable(every)}.values())
