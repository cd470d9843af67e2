"""The GPU memory of fine-tunings, reckoned without a GPU.

    python -m tools.training_memory                # the table of ldm/training/README.md
    python -m tools.training_memory --only lora    # rows with this in their names

The networks are fake tensors, which have shapes but no values. Counted are the weights of all
parts, with what is trained in float32 and the rest in bf16 (the VAE in float32), the gradients, the
average, what the optimizer keeps, and what autograd keeps of one picture for the backward pass
under CUDA's autocast to bf16, with attention that does not keep its matrix. Not counted are CUDA
itself, the workspace of its convolutions and what its allocator leaves unused: ``RESERVE`` stands
for these.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.overrides import TorchFunctionMode

from ldm.checkpoints.family import read_family
from ldm.cli.common import EXIT_CODES, run
from ldm.cli.parsing import Parser
from ldm.clip import CLIPTextEncoder
from ldm.config import UNetConfig
from ldm.fast.frozen import freeze
from ldm.training.checkpointing import checkpoint_blocks
from ldm.training.config import TrainConfig
from ldm.training.finetuning.adapters import AdapterOptions, Adapters
from ldm.training.memory import counted
from ldm.training.optimizer_state import moments_size
from ldm.unet import UNet
from ldm.vae import AutoencoderKL

GIB, RESERVE = 2**30, 1.0  # GiB
CARDS = (8, 12, 16, 24, 40, 80)  # GiB
SIDES = {"sd1": 512, "sdxl": 1024}  # px
OPTIMIZERS = ("adamw", "adamw8bit", "adafactor")
RANK = 16


@dataclass(frozen=True)
class Network:
    """What of a training does not depend on the optimizer, in bytes."""

    trained: nn.Module
    frozen: int
    activations: dict[bool, int]  # without and with gradient checkpointing


def measure(family: str, method: str) -> Network:
    """Build a family's networks of fake tensors, and count what they keep of one picture."""
    known = read_family(family)
    with FakeTensorMode(), torch.device("cpu"):
        others = [AutoencoderKL(known.vae)]
        encoders = [in_half(CLIPTextEncoder(text.config)) for text in known.texts]
        unet = UNet(known.unet)
        trained: nn.Module = unet
        if method == "lora":
            in_half(unet)
            freeze(unet)  # as the trainer does
            adapters = Adapters(unet, AdapterOptions(rank=RANK))
            adapters.attach(unet)
            trained = adapters
            others.append(unet)
        activations = {}
        for checkpointed in (False, True):
            if checkpointed:
                checkpoint_blocks(unet)
            activations[checkpointed] = kept(unet, trained, known.unet, SIDES[family])
        frozen = sum(p.nbytes for part in (*others, *encoders) for p in part.parameters())
    return Network(trained, frozen, activations)


class NormsOfCUDA(TorchFunctionMode):
    """A context in which norms compute in float32, as CUDA's autocast has it and the CPU's not."""

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        if func not in (F.group_norm, F.layer_norm):
            return func(*args, **(kwargs or {}))
        with torch.autocast("cpu", enabled=False):
            return func(*(a.float() if torch.is_tensor(a) else a for a in args), **(kwargs or {}))


def in_half(network: nn.Module) -> nn.Module:
    """Freeze a network in bf16. ``Module.to`` cannot change fake tensors."""
    for module in network.modules():
        for name, value in list(module.named_parameters(recurse=False)):
            setattr(module, name, nn.Parameter(value.bfloat16(), requires_grad=False))
    return network


def kept(unet: UNet, trained: nn.Module, config: UNetConfig, side: int) -> int:
    """Return the bytes that a forward pass of one picture keeps."""
    x = torch.zeros(1, config.in_channels, side // 8, side // 8)
    context = torch.zeros(1, 77, config.cross_attention_dim or 0)
    more = {}
    if (width := config.projection_class_embeddings_input_dim) is not None:
        sizes = 6 * (config.addition_time_embed_dim or 0)
        more = {"pooled": torch.zeros(1, width - sizes), "time_ids": torch.zeros(1, 6)}
    with (
        counted(nn.ModuleList([unet, trained])) as count,
        torch.autocast("cpu", torch.bfloat16),
        sdpa_kernel(SDPBackend.FLASH_ATTENTION),
        NormsOfCUDA(),
    ):
        unet(x, torch.zeros(1), context, **more)
    return count.total


def rows(family: str, method: str) -> list[str]:
    """Return the lines of the table for a family and a method."""
    network, found = measure(family, method), []
    weights = sum(p.nbytes for p in network.trained.parameters())
    for optimizer, averaged, checkpointed in product(OPTIMIZERS, (True, False), (False, True)):
        config = TrainConfig(method, "", "", 1, 1, 1e-4, optimizer=optimizer)
        moments = moments_size(network.trained, config)
        state = network.frozen + (3 if averaged else 2) * weights + moments
        total = (state + network.activations[checkpointed]) / GIB
        card = next((c for c in CARDS if total + RESERVE <= c), math.inf)
        cells = (
            family, SIDES[family], method, optimizer, "yes" if averaged else "no",
            "yes" if checkpointed else "no", f"{state / GIB:.1f}",
            f"{network.activations[checkpointed] / GIB:.1f}", f"{total:.1f}", card,
        )  # fmt: skip
        found.append("| " + " | ".join(map(str, cells)) + " |")
    return found


def table(arguments: argparse.Namespace) -> None:
    """Print the table."""
    columns = (
        "model", "px", "trained", "optimizer", "average", "gradient checkpointing",
        "weights and states, GiB", "activations, GiB", "in all, GiB", "fits a GPU of, GiB",
    )  # fmt: skip
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}")
    for family, method in product(SIDES, ("lora", "full")):
        for row in rows(family, method):
            if all(word in row for word in arguments.only or ()):
                print(row, flush=True)


def main() -> int:
    """Entry point; returns the exit code."""
    parser = Parser(
        prog="python -m tools.training_memory",
        description=__doc__.splitlines()[0],
        epilog=EXIT_CODES,
    )
    add = parser.add_argument
    add("--only", action="append", metavar="TEXT", help="only rows with all of these in them")
    add("--debug", action="store_true", help="show the traceback of an error")
    arguments = parser.parse_args()
    return run(lambda: table(arguments), arguments.debug)


if __name__ == "__main__":
    sys.exit(main())
