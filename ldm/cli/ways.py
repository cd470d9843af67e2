"""How the networks compute: the options of ``ldm generate`` and ``ldm serve`` for it."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any, Literal

from ldm.config.speed import PYTORCH, engine_name
from ldm.errors import ArgumentError

# Options whose names are those of ``Pipeline.optimize``.
SWITCHES = ("int8", "fp8", "int8_weights")
OPTIONS = (*SWITCHES, "offload", "sequential_offload", "engine")


def engine(text: str) -> str:
    """Read the name of an engine."""
    try:
        return engine_name(text)
    except ArgumentError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_ways(add: Callable[..., argparse.Action]) -> None:
    """Add the options."""
    add(
        "--offload",
        action="store_true",
        help="keep only the part that computes in the GPU's memory: slower, in less of it",
    )
    add(
        "--sequential-offload",
        action="store_true",
        help="keep only the block that computes and the next one in the GPU's memory: slowest, in "
        "the least of it",
    )
    add(
        "--int8-weights",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="as --offload, with weights in 8-bit integers on the GPU: about half of the memory, "
        "another picture; not measured",
    )
    add(
        "--engine",
        type=engine,
        metavar="NAME",
        help="what computes the networks: torch (default), or openvino, or openvino:GPU for one of "
        'its devices (pip install "ldm[openvino]")',
    )
    add(
        "--int8",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute in 8-bit integers on a CPU: another picture, faster but for bfloat16 where "
        "the processor has AMX",
    )
    add(
        "--fp8",
        action=argparse.BooleanOptionalAction,
        default=False,
        help="compute linear layers in 8-bit floating point on a GPU of compute capability 8.9 or "
        "more (Ada, Hopper): another picture; not measured",
    )


def offloading(arguments: argparse.Namespace) -> bool | Literal["sequential"]:
    """Return the value of ``offload`` in Python."""
    return "sequential" if arguments.sequential_offload else arguments.offload


def ways_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """Return the arguments of ``Pipeline.optimize`` that are asked for."""
    engine = None if arguments.engine == PYTORCH else arguments.engine
    ways = {name: getattr(arguments, name) for name in SWITCHES}
    ways |= {"offload": offloading(arguments), "engine": engine}
    return {name: way for name, way in ways.items() if way}
