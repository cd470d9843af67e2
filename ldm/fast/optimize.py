"""Which of the faster ways the parts of a model compute in: what ``Pipeline.optimize`` installs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import nn

from ldm.errors import ArgumentError
from ldm.fast.compiled import compile_regions, uncompile
from ldm.fast.fused import fuse_attention
from ldm.fast.graphs import DecoderGraphs, Graphs
from ldm.fast.install import slow_down, speed_up
from ldm.unet import UNet, UNetEncoder
from ldm.vae import AutoencoderKL

if TYPE_CHECKING:
    from ldm.clip import CLIPTextEncoder
    from ldm.fast.offload import Offload
    from ldm.fast.openvino.parts import EngineUNet

# False: all parts are on the GPU; True: one at a time; "sequential": two blocks at a time.
Offloading = bool | Literal["sequential"]


@dataclass(frozen=True)
class Optimized:
    """How parts compute now.

    Attributes:
        graphs: the recorded steps, on CUDA. control_graphs: those of ControlNets, by name.
        decoder: the recorded decodes of the VAE.
        engine: what calls OpenVINO in the place of the U-Net.
        offload: what keeps parts off the GPU. sequential: whether it does so block by block.
        int8, fp8: whether the U-Net computes in 8 bits: integers, or floating-point numbers.
        int8_weights: whether ``offload`` brings weights in 8 bits.
        compile: whether the blocks are compiled.
        on: whether anything is optimized.
        by_default: whether nobody chose it: CUDA is fast by default, a CPU in ``ldm generate``.
    """

    graphs: Graphs | None = None
    control_graphs: Mapping[str, Graphs] = field(default_factory=dict)
    engine: EngineUNet | None = None
    offload: Offload | None = None
    sequential: bool = False
    int8: bool = False
    compile: bool = False
    on: bool = False
    by_default: bool = False
    fp8: bool = False
    int8_weights: bool = False
    decoder: DecoderGraphs | None = None

    @property
    def ways(self) -> dict[str, Any]:
        """The arguments of ``Pipeline.optimize`` that install the same again."""
        return {
            "compile": self.compile,
            "offload": "sequential" if self.sequential else self.offload is not None,
            "int8": self.int8,
            "fp8": self.fp8,
            "int8_weights": self.int8_weights,
            "engine": self.engine_name,
        }

    @property
    def engine_name(self) -> str | None:
        """The name of the engine that computes, such as "openvino"; None is PyTorch."""
        return None if self.engine is None else self.engine.engine.name


def check_optimize(
    device: torch.device,
    parts: Sequence[nn.Module] = (),
    *,
    compile: bool = False,
    offload: Offloading = False,
    int8: bool = False,
    fp8: bool = False,
    int8_weights: bool = False,
    engine: str | None = None,
) -> None:
    """Raise ArgumentError for what does not work on a device or together, or is not installed.

    parts: the U-Net, the VAE, the text encoders.
    """
    if offload and device.type == "cpu":
        raise ArgumentError(
            f"offload={offload!r} keeps parts off the GPU, but the device is the CPU; leave it out"
        )
    if offload == "sequential" and compile:
        raise ArgumentError(
            "offload='sequential' and compile exclude each other, as weights move between blocks; "
            "give one of them, or offload=True"
        )
    if int8_weights and device.type == "cpu":
        raise ArgumentError(
            "int8_weights is for weights on a GPU, but the device is the CPU; leave it out"
        )
    if int8_weights:
        others = {"compile": compile, "fp8": fp8, "engine": engine}
        refuse_together("int8_weights", **others, sequential=offload == "sequential")
    if int8 and device.type != "cpu":
        raise ArgumentError(f"int8 is for CPUs, but the device is {device}; leave it out")
    if int8 and compile:
        raise ArgumentError("int8 and compile exclude each other; give one of them")
    if fp8:
        from ldm.fast.fp8 import check_supported

        check_supported(device)
        refuse_together("fp8", compile=compile, offload=offload, engine=engine)
    if engine is not None:
        refuse_together("engine", compile=compile, offload=offload, int8=int8)
        check_engine(engine, device, parts)


def refuse_together(one: str, **others: object) -> None:
    """Raise ArgumentError where another option is given with one that excludes it."""
    for name, given in others.items():
        if given:
            raise ArgumentError(f"{one} and {name} exclude each other; give one of them")


def check_engine(engine: str, device: torch.device, parts: Sequence[nn.Module]) -> None:
    """Raise ArgumentError where an engine cannot compute the parts of a model on a device."""
    if device.type != "cpu":
        raise ArgumentError(
            f"engine is {engine!r}, which needs the model on the CPU, but it is on {device}; "
            'load it with device="cpu" (--device cpu)'
        )
    from ldm.fast.openvino.library import Engine

    for dtype in dict.fromkeys(p.dtype for part in parts for p in islice(part.parameters(), 1)):
        Engine.of(engine).check(dtype)


def undo(before: Optimized, parts: Sequence[nn.Module], device: torch.device) -> None:
    """Restore the parts as they were loaded; those that ``offload`` kept off come to a device."""
    if before.offload:
        before.offload.end(device)
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
    offload: Offloading = False,
    int8: bool = False,
    fp8: bool = False,
    int8_weights: bool = False,
    engine: str | None = None,
    classifier: nn.Module | None = None,
) -> Optimized:
    """Make parts, which are as they were loaded, compute faster; see ``Pipeline.optimize``.

    encoders: of text. others, classifier: parts that only ``offload`` is for; gradients are taken
    of the latter. ``int8`` and ``fp8`` are for the U-Net alone.
    """
    if engine is not None:
        from ldm.fast.openvino.library import Engine
        from ldm.fast.openvino.parts import install

        for network in controlnets.values():
            speed_up(network)
        return Optimized(engine=install(unet, vae, encoders, Engine.of(engine)), on=True)
    if fp8:  # before attention is fused: its own does that, too
        from ldm.fast.fp8 import quantize as in_fp8

        in_fp8(unet)
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
    if offload or int8_weights:
        whole = [] if classifier is None else [classifier]
        rounded = [unet, *controlnets.values(), *encoders] if int8_weights else []
        away = keep_away(
            [unet, vae, *controlnets.values(), *encoders, *others, *whole],
            whole,
            device,
            offload,
            rounded,
        )
        return Optimized(
            offload=away,
            sequential=offload == "sequential",
            compile=compile,
            on=True,
            int8_weights=int8_weights,
        )
    if device.type != "cuda":
        return Optimized(int8=int8, compile=compile, on=True, fp8=fp8)
    recorded = {
        name: Graphs(network)
        for name, network in controlnets.items()
        if isinstance(network, UNetEncoder)
    }
    decoder = DecoderGraphs(vae) if isinstance(vae, AutoencoderKL) else None
    return Optimized(
        Graphs(unet), recorded, int8=int8, compile=compile, on=True, fp8=fp8, decoder=decoder
    )


def keep_away(
    parts: Sequence[nn.Module],
    whole: Sequence[nn.Module],
    device: torch.device,
    offload: Offloading,
    rounded: Sequence[nn.Module],
) -> Offload:
    """Keep parts off a GPU until they compute.

    whole: those that are one block. rounded: those whose weights have 8 bits on the GPU.
    """
    from ldm.fast.offload import Offload
    from ldm.fast.sequential import Sequential

    if rounded:
        from ldm.fast.int8_weights import Int8Offload

        return Int8Offload(parts, device, rounded)
    return Sequential(parts, device, whole) if offload == "sequential" else Offload(parts, device)
