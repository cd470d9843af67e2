"""A step of Muon. As a script, `share_muon.py FOLDER`, it is one of several processes.

Each writes the weights that it has then to `FOLDER/RANK.pt`.
"""

import gc
import sys
from pathlib import Path

import torch
from accelerate import PartialState
from torch import Tensor

from ldm.training.muon import Muon


def moved() -> list[Tensor]:
    """Six weights after a step from the same gradients: two shapes of matrices, and a vector."""
    generator = torch.Generator().manual_seed(0)
    shapes = [(24, 40), (40, 24), (24, 40), (16, 3, 3, 3), (24, 40), (7,)]
    weights = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    for weight in weights:
        weight.grad = torch.randn(weight.shape, generator=generator)
    Muon(weights, lr=0.1).step()
    return [weight.detach() for weight in weights]


if __name__ == "__main__":
    state = PartialState(cpu=True)
    assert state.num_processes == 2
    torch.save(moved(), Path(sys.argv[1]) / f"{state.process_index}.pt")
    state.wait_for_everyone()
    state.destroy_process_group()
    gc.collect()  # a group's threads must end before the interpreter does, or they abort it
