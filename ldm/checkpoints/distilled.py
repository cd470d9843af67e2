"""Distilled U-Nets: their names, and the configuration of a U-Net of any structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from ldm.checkpoints.original import UNET_ENDS, unet_names
from ldm.checkpoints.structure import Structure, place_of, read_structure
from ldm.config import UNetConfig
from ldm.errors import CheckpointError

T = TypeVar("T")

# The distilled U-Nets that people use: (down, middle, up) and the levels of ``crossing``. SSD-1B,
# Vega and KOALA are of SDXL, BK-SDM and SDXS of 1.x or 2.x.
SMALL = ((1,), (1,), (1,), (0,)), ((0, 0), (1, 1), (1, 1), (1, 1))
TINY = ((1,),) * 3, ((1, 1),) * 3
DISTILLED = {
    (((0, 0), (2, 2), (4, 4)), 0, ((4, 4, 10), (2, 1, 1), (0, 0, 0)), 0): "SSD-1B",
    (((0, 0), (1, 1), (2, 2)), 0, ((2, 2, 2), (1, 1, 1), (0, 0, 0)), 0): "Segmind Vega",
    (((0,), (2,), (5,)), None, ((5, 5), (2, 2), (0, 0)), 0): "KOALA-700M",
    (((0,), (2,), (6,)), 6, ((6, 6), (2, 2), (0, 0)), 0): "KOALA-1B",
    (SMALL[0], 1, SMALL[1], 0): "BK-SDM-Base (small-sd)",
    (SMALL[0], None, SMALL[1], 0): "BK-SDM-Small",
    (TINY[0], None, TINY[1], 0): "BK-SDM-Tiny (tiny-sd)",
    (TINY[0], None, TINY[1], 1): "SDXS-512-0.9",
    (((0,), (1,), (1,)), None, ((1, 1), (1, 1), (0, 0)), 0): "SDXS-512",
}


def structure_of(config: UNetConfig) -> Structure:
    """Return the structure of a configuration."""
    layers = config.layers
    middle = {"UNetMidBlock2DCrossAttn": config.mid_depth, "UNetMidBlock2D": 0}
    return Structure(
        config.block_out_channels,
        tuple(a or (0,) * n for a, n in zip(config.down_depths, layers, strict=True)),
        middle.get(config.mid_block_type or ""),
        tuple(a or (0,) * (n + 1) for a, n in zip(config.up_depths, layers[::-1], strict=True)),
        config.crossing,
        config.use_linear_projection,
    )


def distilled_name(structure: Structure) -> str | None:
    """Name a distilled U-Net that is known by its layers; None for others."""
    crossing = sum(structure.crossing[:1])
    return DISTILLED.get((structure.down, structure.middle, structure.up, crossing))


def with_structure(base: UNetConfig, structure: Structure) -> UNetConfig:
    """Return the configuration of a U-Net of another structure, else like the ``base`` it is of.

    Raises CheckpointError for a structure that cannot be.
    """
    own = structure_of(base)
    structure = structure._replace(linear=structure.linear or base.use_linear_projection)
    if structure == own:
        return base
    down, up = structure.down, structure.up
    middle = structure.middle
    # As the middle has the depth of the last level, that of a level without attention is the
    # middle's own.
    rest = middle or 1
    depths = [_shortest(depth) if any(depth) else 1 for depth in down]
    if not any(down[-1]):
        depths[-1] = rest
    back = [_shortest(depth) if any(depth) else 1 for depth in up]
    same = all(isinstance(depth, int) for depth in depths) and all(
        not any(b) or a == c for a, b, c in zip(depths[::-1], up, back, strict=True)
    )
    changes: dict[str, Any] = {
        "block_out_channels": structure.widths,
        "layers_per_block": _shortest(tuple(map(len, down))),
        "down_block_types": tuple(f"{_cross(one)}DownBlock2D" for one in down),
        "up_block_types": tuple(f"{_cross(one)}UpBlock2D" for one in up),
        "mid_block_type": _middle(middle),
        "transformer_layers_per_block": _shortest(tuple(depths)),
        "reverse_transformer_layers_per_block": None if same else tuple(back),
        "only_cross_attention": structure.crossing if any(structure.crossing) else False,
        "use_linear_projection": structure.linear,
    }
    if structure.widths != base.block_out_channels and not isinstance(base.attention_head_dim, int):
        size = base.block_out_channels[0] // base.heads[0]  # channels of a head
        changes["attention_head_dim"] = tuple(width // size for width in structure.widths)
    config = replace(base, **changes)
    if structure_of(config) != structure:
        raise CheckpointError("its layers are of a structure that no configuration describes")
    return config


def original_names(entries: Mapping[str, T], shapes: Mapping[str, Sequence[int]]) -> dict[str, T]:
    """Rename the tensors of a U-Net alone from diffusers' names to the original ones.

    Other tensors, such as marker keys, keep their names. {} for anything but a U-Net with a text.
    """
    places = {name: place for name in entries if (place := place_of(name))}
    inner = set(places)
    ends = {name for name in entries if name.rpartition(".")[0] in UNET_ENDS}
    strange = (name for name in entries.keys() - inner - ends if "." in name)
    structure = read_structure(shapes)
    if structure is None or "conv_in.weight" not in ends or any(strange):
        return {}
    layers = tuple(map(len, structure.down))
    if any(level >= len(layers) for _, level, *_ in places.values()):  # a tensor of no level
        return {}
    rename = unet_names(layers, [any(level) for level in structure.up])
    return {
        rename(name).name if name in inner or name in ends else name: entry
        for name, entry in entries.items()
    }


def _shortest(values: tuple[Any, ...]) -> Any:
    """Write a list of one value as this value."""
    same = len(set(values)) == 1 and isinstance(values[0], int)
    return values[0] if same else values


def _cross(depths: tuple[int, ...]) -> str:
    return "CrossAttn" if any(depths) else ""


def _middle(depth: int | None) -> str | None:
    if depth is None:
        return None
    return "UNetMidBlock2DCrossAttn" if depth else "UNetMidBlock2D"
