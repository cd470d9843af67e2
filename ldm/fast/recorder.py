"""CUDA graphs: how one call is recorded, in which memory, and what that takes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple
from weakref import WeakSet

import torch
from torch import Tensor

Inputs = dict[str, Tensor]
Output = Tensor | list[Tensor]

# PyTorch allows one capture at a time in a process.
CAPTURE = threading.Lock()


class Recording(NamedTuple):
    """A recorded call, which ``replay`` repeats on the same memory."""

    inputs: Inputs  # memory that ``replay`` reads
    output: Any  # memory that it writes
    replay: Callable[[], None]
    computed: bool = False  # whether ``output`` is there already, of the inputs at recording


def tensors_of(output: Output) -> Sequence[Tensor]:
    """Return the tensors of a network's output."""
    return [output] if torch.is_tensor(output) else output


class Recorder:
    """Records calls on CUDA, all of them in one pool of memory.

    What is in the pool is read by nobody after a replay, except outputs, which stay allocated. So
    replays in any order may share it: the recordings together take the memory of the largest.
    """

    def __init__(self) -> None:
        self.graphs: WeakSet[torch.cuda.CUDAGraph] = WeakSet()
        self.stream: torch.cuda.Stream | None = None  # of all captures: the pool belongs to it
        self.taken = 0  # bytes of the pool

    @property
    def held(self) -> int:
        """Bytes that the pool keeps from others, for as long as there is a recording."""
        return self.taken if len(self.graphs) else 0

    def __call__(self, call: Callable[..., Any], inputs: Inputs) -> Recording:
        """Compute a call aside, then record it. What it computed is the recording's first output.

        Raises what the call or CUDA raises, with the caller's stream current again.
        """
        device = next(iter(inputs.values())).device
        with CAPTURE, torch.cuda.device(device):
            here = torch.cuda.current_stream()
            aside = torch.cuda.Stream()
            aside.wait_stream(here)
            with torch.cuda.stream(aside):  # libraries choose their kernels, caches are filled
                first = tensors_of(call(**inputs))
            here.wait_stream(aside)
            for y in first:
                y.record_stream(here)
            self.taken = self.held
            # A graph that is alive names the pool; else a new one begins.
            pool = next((graph.pool() for graph in self.graphs), None)
            self.stream = self.stream or torch.cuda.Stream()
            graph = torch.cuda.CUDAGraph()
            try:
                with torch.cuda.graph(
                    graph,
                    pool=pool,
                    stream=self.stream,
                    capture_error_mode="thread_local",  # other threads may go on
                ):
                    before = torch.cuda.memory_reserved()
                    output = call(**inputs)
                    taken = torch.cuda.memory_reserved() - before
            finally:  # where a capture fails, PyTorch leaves its stream current
                torch.cuda.set_stream(here)
            self.graphs.add(graph)
            self.taken += taken
            for y, value in zip(tensors_of(output), first, strict=True):
                y.copy_(value)
        return Recording(inputs, output, graph.replay, computed=True)
