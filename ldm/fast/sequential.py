"""Blocks of a model that wait in the CPU's memory, two of them on the GPU: the least memory.

While a block computes in one of two buffers, the weights of the one that came after it the last
time are copied into the other, on a second stream. Nothing is copied back: the weights in the CPU's
pinned memory are the ones that count, and what changes them there is seen. Layers beside the blocks
(a U-Net's first and last convolution, what embeds its time, projections) are small: they stay.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ldm.clip import EncoderLayer
from ldm.fast.offload import Offload, tensors_of
from ldm.fast.packed import version
from ldm.layers import Downsample, ResnetBlock, SpatialAttention, TransformerBlock, Upsample
from ldm.vae import Decoder, Encoder

# The VAE's halves are blocks as a whole: ``ldm.fast.strips`` calls only some of their layers.
BLOCKS = (
    *(ResnetBlock, TransformerBlock, SpatialAttention, Downsample, Upsample),
    *(EncoderLayer, Encoder, Decoder),
)
LAYERS = (nn.Linear, nn.Conv2d, nn.Embedding)  # those that are blocks themselves where …
LARGE = 4 << 20  # … they have more bytes than this
ALIGNMENT = 256  # bytes; a tensor on the GPU begins at a multiple of it


class Mover(Protocol):
    """Copies weights to a device beside what computes there."""

    def pinned(self, data: Tensor) -> Tensor:
        """Return the tensor in memory that is copied from without a detour."""

    def mark(self) -> Any:
        """Return the moment at which all is done that computes until now."""

    def copy(self, pairs: Iterable[tuple[Tensor, Tensor]], after: Any) -> Any:
        """Copy to each first tensor its second one, after a moment; return that of the end."""

    def wait(self, copied: Any) -> None:
        """Let what computes from now on wait for a copy."""

    def finish(self) -> None:
        """Wait until all is done."""


class Streams:
    """Copies to a GPU on a second stream."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.stream = device, torch.cuda.Stream(device)

    def __reduce__(self) -> tuple[type[Streams], tuple[torch.device]]:
        """Copy and pickle with a stream of its own."""
        return Streams, (self.device,)

    def pinned(self, data: Tensor) -> Tensor:
        """See ``Mover``."""
        return data if data.is_pinned() else data.pin_memory()

    def mark(self) -> torch.cuda.Event:
        """See ``Mover``."""
        return torch.cuda.current_stream(self.device).record_event()

    def copy(
        self, pairs: Iterable[tuple[Tensor, Tensor]], after: torch.cuda.Event
    ) -> torch.cuda.Event:
        """See ``Mover``."""
        self.stream.wait_event(after)
        with torch.cuda.stream(self.stream):
            for target, source in pairs:
                target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, copied: torch.cuda.Event) -> None:
        """See ``Mover``."""
        torch.cuda.current_stream(self.device).wait_event(copied)

    def finish(self) -> None:
        """See ``Mover``."""
        torch.cuda.synchronize(self.device)


class Placed(NamedTuple):
    """A block whose weights are copied into a buffer."""

    block: nn.Module
    slot: int  # which of the two buffers
    home: list[tuple[Tensor, Tensor]]  # (parameter or buffer, its data at home)
    there: list[Tensor]  # the data in the buffer
    marks: list[tuple[int, int, float]]  # of what is copied
    copied: Any  # when


class Sequential(Offload):
    """Brings each block of ``parts`` to ``device`` when it is called, and the next one beside it.

    At most two blocks are there, in two buffers of the largest one's size. The CPU waits for
    nothing: the streams wait for each other. ``whole``: parts that are one block, since gradients
    are taken of them, which read the weights after the call.
    """

    def __init__(
        self,
        parts: Sequence[nn.Module],
        device: torch.device,
        whole: Sequence[nn.Module] = (),
        mover: Mover | None = None,
    ) -> None:
        self.mover: Mover = mover or Streams(device)
        self.whole = whole
        self.present: Placed | None = None  # the block that computes
        self.next: Placed | None = None
        self.following: dict[nn.Module, nn.Module] = {}  # which block came after which
        self.buffers: list[Tensor] = []
        self.free: list[Any] = []  # for each buffer, the moment from which on it is not read
        self.largest = 0
        super().__init__(parts, device)

    def watch(self, part: nn.Module) -> None:
        """Have the blocks of a part brought when they are called; bring the rest of it now."""
        self.prepare(part)  # inputs alone
        blocks, rest = split(part, self.whole)
        for block in blocks:
            self.largest = max(self.largest, size_of(tensors_of([block])))
            super().watch(block)
        for tensor in rest:
            tensor.data = tensor.data.to(self.device)

    def bring(self, part: nn.Module) -> None:
        """Let a block compute, and copy the next one to the device meanwhile."""
        before = self.present
        if before is not None and before.block is part:
            return
        self._leave()
        placed, self.next = self.next, None
        if placed is None or placed.block is not part or placed.marks != marks(part):
            placed = self._place(part, 0 if before is None else 1 - before.slot)
        self.mover.wait(placed.copied)
        for (tensor, _), data in zip(placed.home, placed.there, strict=True):
            tensor.data = data
        self.present = placed
        if before is not None:
            self.following[before.block] = part
        following = self.following.get(part)
        if following is not None and following is not part:
            self.next = self._place(following, 1 - placed.slot)

    def _place(self, block: nn.Module, slot: int) -> Placed:
        """Begin to copy a block's weights into a buffer."""
        if not self.buffers:
            like: Any = {"dtype": torch.uint8, "device": self.device}
            self.buffers = [torch.empty(self.largest, **like) for _ in range(2)]
            self.free = [self.mover.mark()] * 2
        home = []
        for tensor in tensors_of([block]):
            tensor.data = self.mover.pinned(tensor.data)
            home.append((tensor, tensor.data))
        there = lay_out([data for _, data in home], self.buffers[slot])
        pairs = zip(there, (data for _, data in home), strict=True)
        known = marks(block)
        return Placed(block, slot, home, there, known, self.mover.copy(pairs, self.free[slot]))

    def _leave(self) -> None:
        """Let the weights of the block that computed be those at home."""
        if self.present is not None:
            for tensor, data in self.present.home:
                tensor.data = data
            self.free[self.present.slot] = self.mover.mark()
            self.present = None

    def send_home(self) -> None:
        """Take the blocks off the device, and free the buffers.

        It waits for copies, as what follows may change the weights that they read.
        """
        self._leave()
        if self.buffers:
            self.mover.finish()
        self.next = None
        self.buffers, self.free = [], []


def split(part: nn.Module, whole: Sequence[nn.Module] = ()) -> tuple[list[nn.Module], list[Tensor]]:
    """Return the blocks of a part, and the tensors beside them."""
    if isinstance(part, BLOCKS) or any(part is one for one in whole):
        return [part], []
    own = [*part.parameters(recurse=False), *part.buffers(recurse=False)]
    if isinstance(part, LAYERS) and sum(tensor.nbytes for tensor in own) > LARGE:
        return [part], []
    blocks: list[nn.Module] = []
    for child in part.children():
        more, beside = split(child, whole)
        blocks += more
        own += beside
    return blocks, own


def held(parts: Iterable[nn.Module], whole: Sequence[nn.Module] = ()) -> int:
    """Count the bytes of the parts' weights on the GPU: two blocks, and what stays there."""
    largest, beside = 0, 0
    for part in parts:
        blocks, rest = split(part, whole)
        largest = max([largest, *(size_of(tensors_of([block])) for block in blocks)])
        beside += sum(tensor.nbytes for tensor in rest)
    return 2 * largest + beside


def aligned(size: int) -> int:
    """Round bytes up to where the next tensor may begin."""
    return -(-size // ALIGNMENT) * ALIGNMENT


def size_of(tensors: Iterable[Tensor]) -> int:
    """Count the bytes of a buffer for these tensors."""
    return sum(aligned(tensor.nbytes) for tensor in tensors)


def lay_out(tensors: Iterable[Tensor], buffer: Tensor) -> list[Tensor]:
    """Return tensors in a buffer of bytes, in the shapes, dtypes and memory formats of others."""
    found, start = [], 0
    for tensor in tensors:
        strides = torch.empty_like(tensor, device="meta").stride()
        memory = buffer[start : start + tensor.nbytes].view(tensor.dtype)
        found.append(memory.as_strided(tensor.shape, strides))
        start += aligned(tensor.nbytes)
    return found


def marks(block: nn.Module) -> list[tuple[int, int, float]]:
    """Return what tells whether weights at home have changed: which ones, where, how often."""
    return [(id(one), one.data_ptr(), version(one)) for one in tensors_of([block])]
