"""Which of the faster ways the parts of a model compute in: what ``Pipeline.optimize`` installs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ldm.errors import ArgumentError
from ldm.fast.compiled import compile_regions, uncompile
from ldm.fast.fused import fuse_attention
from ldm.fast.graphs import Graphs
from ldm.fast.install import slow_down, speed_up
from ldm.unet import UNet, UNetEncoder

if TYPE_CHECKING:
    from ldm.clip import CLIPTextEncoder
    from ldm.fast.offload import Offload
    from ldm.fast.openvino.parts import EngineUNet


@dataclass(frozen=True)
class Optimized:
    """How parts compute now.

    Attributes:
        graphs: the recorded steps, on CUDA. control_graphs: those of ControlNets, by name.
        engine: what calls OpenVINO in the place of the U-Net.
        offload: what keeps parts off the GPU.
        int8: whether the U-Net computes in 8 bits.
        compile: whether the blocks are compiled.
        on: whether anything is optimized.
        by_default: whether nobody chose it: CUDA is fast by default, a CPU in ``ldm generate``.
    """

    graphs: Graphs | None = None
    control_graphs: Mapping[str, Graphs] = field(default_factory=dict)
    engine: EngineUNet | None = None
    offload: Offload | None = None
    int8: bool = False
    compile: bool = False
    on: bool = False
    by_default: bool = False

    @property
    def ways(self) -> dict[str, Any]:
        """The arguments of ``Pipeline.optimize`` that install the same again."""
        return {
            "compile": self.compile,
            "offload": self.offload is not None,
            "int8": self.int8,
            "engine": self.engine_name,
        }

    @property
    def engine_name(self) -> str | None:
        """The name of the engine that computes, such as "openvino"; None is PyTorch."""
        return None if self.engine is None else self.engine.engine.name


def check_optimize(
    device: torch.device,
    parts: Sequence[nn.Module],
    *,
    compile: bool,
    offload: bool,
    int8: bool,
    engine: str | None,
) -> None:
    """Raise ArgumentError for what does not work on a device or together, or is not installed.

    parts: the U-Net, the VAE, the text encoders.
    """
    if offload and device.type == "cpu":
        raise ArgumentError("offload keeps parts off the GPU, but the device is the CPU")
    if int8 and device.type != "cpu":
        raise ArgumentError(f"int8 is for CPUs, but the device is {device}; leave it out")
    if int8 and compile:
        raise ArgumentError("int8 and compile exclude each other; give one of them")
    if engine is not None:
        others = {"compile": compile, "offload": offload, "int8": int8}
        for name in (name for name, given in others.items() if given):
            raise ArgumentError(f"engine and {name} exclude each other; give one of them")
        if device.type != "cpu":
            raise ArgumentError(
                f"engine is {engine!r}, which needs the model on the CPU, but it is on {device}; "
                'load it with device="cpu" (--device cpu)'
            )
        from ldm.fast.openvino.library import Engine

        for dtype in dict.fromkeys(p.dtype for part in parts for p in islice(part.parameters(), 1)):
            Engine.of(engine).check(dtype)


def undo(before: Optimized, parts: Sequence[nn.Module]) -> None:
    """Restore the parts as they were loaded."""
    if before.offload:
        before.offload.end()
    for part in parts:
        slow_down(part)
        uncompile(part)


def optimize(
    unet: UNet,
    vae: nn.Module,
    encoders: Sequence[CLIPTextEncoder],
    others: Sequence[nn.Module],
    controlnets: Mapping[str, nn.Module],
    device: torch.device,
    *,
    compile: bool = False,
    offload: bool = False,
    int8: bool = False,
    engine: str | None = None,
) -> Optimized:
    """Make parts, which are as they were loaded, compute faster; see ``Pipeline.optimize``.

    encoders: of text. others: parts that only ``offload`` is for. ``int8`` is for the U-Net alone.
    """
    if engine is not None:
        from ldm.fast.openvino.library import Engine
        from ldm.fast.openvino.parts import install

        for network in controlnets.values():
            speed_up(network)
        return Optimized(engine=install(unet, vae, encoders, Engine.of(engine)), on=True)
    for part in (unet, vae, *controlnets.values()):
        if compile:
            compile_regions(part)
        elif device.type == "cpu":
            speed_up(part)
        if device.type == "cuda":  # fastest for half-precision convolutions
            # The stub lacks this form.
            part.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
            if not (compile or offload):  # blocks are compiled as they are; parts move
                fuse_attention(part)
    if int8:
        from ldm.fast.int8 import quantize

        quantize(unet)
    if offload:
        from ldm.fast.offload import Offload

        away = Offload([unet, vae, *controlnets.values(), *encoders, *others], device)
        return Optimized(offload=away, int8=int8, compile=compile, on=True)
    if device.type != "cuda":
        return Optimized(int8=int8, compile=compile, on=True)
    recorded = {
        name: Graphs(network)
        for name, network in controlnets.items()
        if isinstance(network, UNetEncoder)
    }
    return Optimized(Graphs(unet), recorded, int8=int8, compile=compile, on=True)
