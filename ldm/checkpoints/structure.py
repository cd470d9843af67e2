"""The structure of a U-Net with a text, from the names and shapes in a file: no tensor is read.

Distilled U-Nets leave out layers of the one that they were taught by (Kim et al. 2023, "BK-SDM",
section 3.1; Gupta et al. 2024, "Progressive Knowledge Distillation of Stable Diffusion XL", of
SSD-1B and Segmind Vega; Lee et al. 2024, "KOALA"). A single file has no config, but its names show
which layers there are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import NamedTuple

ORIGINAL = re.compile(r"(input|output|middle)_block(?:s\.(\d{1,4}))?\.(\d)\.(.+)")
DIFFUSERS = re.compile(
    r"(down|up)_blocks\.(\d{1,4})\.(resnets|attentions|downsamplers|upsamplers)\.(\d{1,4})\.(.+)"
)
DIFFUSERS_MIDDLE = re.compile(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)")
# Beyond what any model has, a network is not built only to find that it does not fit.
MOST_LEVELS, MOST_LAYERS, MOST_DEPTH = 16, 32, 64
BLOCK = re.compile(r"transformer_blocks\.(\d{1,4})\.(.+)")


class Structure(NamedTuple):
    """Which layers a U-Net consists of.

    A layer is a residual block with or without attention to the text: the number of its
    transformer blocks, 0 for none.
    """

    widths: tuple[int, ...]  # channels of each level, finest first
    down: tuple[tuple[int, ...], ...]  # the layers of each level, finest first
    middle: int | None  # transformer blocks; 0: one residual block alone, None: no middle
    up: tuple[tuple[int, ...], ...]  # coarsest first
    crossing: tuple[bool, ...]  # levels in which both attentions look at the text
    linear: bool  # whether the first and last layers of attention are no convolutions


@dataclass
class Layer:
    """What the names of a file show of one layer."""

    width: int = 0  # of the residual block; 0: none
    blocks: set[int] = field(default_factory=set)  # numbers of its transformer blocks
    resamples: bool = False  # whether the resolution changes after it
    inputs: dict[str, int] = field(default_factory=dict)  # of the first attention
    linear: bool = False

    def read(self, rest: str, shape: Sequence[int]) -> None:
        """Read one tensor: its name within the layer, as original files and diffusers have it."""
        if rest in ("in_layers.2.weight", "conv1.weight"):
            self.width = shape[0] if shape else 0
        elif rest in ("op.weight", "conv.weight"):
            self.resamples = True
        elif rest == "proj_in.weight":
            self.linear = len(shape) == 2
        elif found := BLOCK.fullmatch(rest):
            self.blocks.add(int(found[1]))
            if found[1] == "0" and len(shape) == 2:
                self.inputs[found[2]] = shape[1]

    @property
    def depth(self) -> int:
        """How many transformer blocks it has; -1 if one is missing between them, or too many."""
        whole = not self.blocks or max(self.blocks) < len(self.blocks) <= MOST_DEPTH
        return len(self.blocks) if whole else -1

    @property
    def crosses(self) -> bool:
        """Whether the first attention looks at the text."""
        key = self.inputs.get("attn1.to_k.weight")
        return key != self.inputs.get("attn1.to_q.weight") and key == self.inputs.get(
            "attn2.to_k.weight"
        )


def read_structure(shapes: Mapping[str, Sequence[int]], prefix: str = "") -> Structure | None:
    """Read the structure from original names below ``prefix``, or from diffusers' names.

    None for what is no whole U-Net with a text.
    """
    layers: dict[tuple[str, int, int], Layer] = {}
    for name, shape in shapes.items():
        if not name.startswith(prefix):
            continue
        if place := place_of(name.removeprefix(prefix)):
            way, level, index, rest = place
            layers.setdefault((way, level, index), Layer()).read(rest, shape)
    if any(way in ("down", "up") for way, *_ in layers):
        down, up = (list(_levels(layers, way)) for way in ("down", "up"))
    else:
        down, up = (list(_split(layers, way)) for way in ("input", "output"))
    return _structure(down, [layers[key] for key in sorted(layers) if key[0] == "middle"], up)


def place_of(name: str) -> tuple[str, int, int, str] | None:
    """Return (way, level, layer, rest of the name) of a tensor in a layer."""
    if found := ORIGINAL.fullmatch(name):
        way, block, part, rest = found.groups()
        if way == "middle":
            return way, 0, 0 if part == "1" else int(part), rest
        return way, 0, int(block or 0), rest
    if found := DIFFUSERS.fullmatch(name):
        way, level, part, index, rest = found.groups()
        # A change of resolution is of the level: its layer has a number of its own.
        return way, int(level), -1 if part.endswith("samplers") else int(index), rest
    if found := DIFFUSERS_MIDDLE.fullmatch(name):
        part, index, rest = found.groups()
        return "middle", 0, 0 if part == "attentions" else 2 * int(index), rest
    return None


def _levels(layers: Mapping[tuple[str, int, int], Layer], way: str) -> Iterator[list[Layer]]:
    """Yield the layers of each level, under diffusers' names."""
    for level in count():
        found = []
        for index in count():
            if (way, level, index) not in layers:
                break
            found.append(layers[way, level, index])
        if not found:
            return
        yield found


def _split(layers: Mapping[tuple[str, int, int], Layer], way: str) -> Iterator[list[Layer]]:
    """Yield the layers of each level, under the original names: the resolution parts them."""
    level: list[Layer] = []
    for index in count(way == "input"):  # the first of "input" is no layer
        layer = layers.get((way, 0, index))
        if layer is None:
            break
        if layer.width:
            level.append(layer)
        if layer.resamples:
            yield level
            level = []
    if level:
        yield level


def _structure(
    down: list[list[Layer]], middle: list[Layer], up: list[list[Layer]]
) -> Structure | None:
    levels = [*down, *up]
    if not down or len(down) != len(up) or not all(levels):
        return None
    if len(down) > MOST_LEVELS or max(map(len, levels)) > MOST_LAYERS:
        return None
    if any(len(a) + 1 != len(b) for a, b in zip(down, up[::-1], strict=True)):
        return None
    widths = tuple(level[0].width for level in down)
    each = [[layer.depth for layer in level] for level in levels]
    for level, depths, width in zip(levels, each, [*widths, *widths[::-1]], strict=True):
        if any(layer.width != width for layer in level) or -1 in depths:
            return None
        if len({bool(depth) for depth in depths}) > 1 or not width:
            return None
    depth = middle[0].depth if middle else None
    if depth == -1 or len(middle) > 2 or (middle and (len(middle) == 2) != bool(depth)):
        return None
    attending = [layer for level in levels for layer in level if layer.blocks]
    down_depths, up_depths = each[: len(down)], each[len(down) :]
    return Structure(
        widths,
        tuple(map(tuple, down_depths)),
        depth,
        tuple(map(tuple, up_depths)),
        tuple(
            any(layer.crosses for layer in (*a, *b)) for a, b in zip(down, up[::-1], strict=True)
        ),
        any(layer.linear for layer in attending),
    )
