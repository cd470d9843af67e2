"""The names in T2I-Adapters' files, and what their shapes say; no tensor is read.

Source: TencentARC/T2I-Adapter, ``ldm/modules/encoders/adapter.py``, and diffusers' ``T2IAdapter``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ldm.checkpoints.family import FAMILIES, read_family
from ldm.config.t2i_adapter import LIGHT, TYPES, XL, T2IAdapterConfig, unet_places
from ldm.errors import CheckpointError

Shapes = Mapping[str, Sequence[int]]
PREFIX = "adapter."  # before diffusers' names; in some files also before the authors'
# Of a residual block in the authors' files; light adapters have several in a block of the body.
LAYER = re.compile(
    r"body\.(\d+)\.(?:body\.(\d+)\.)?(in_conv|block1|block2|out_conv)\.(weight|bias)"
)
# Numbers of the unshuffled picture's channels → (in_channels, downscale_factor).
INPUTS = {64: (1, 8), 192: (3, 8), 256: (1, 16), 768: (3, 16)}
USUAL_BLOCKS = 2  # residual blocks of a level, if nothing in the file says how many
FAMILY_SCALE = 8  # pixels along a side for each of the latents, of all families


def diffusers_names(names: Iterable[str]) -> dict[str, str]:
    """Return diffusers' name of each name in a file; those of no T2I-Adapter stay.

    The authors number the residual blocks of all levels through: 0 to 7 in 4 levels. The first that
    changes the width begins the second level.
    """
    plain = {name: name.removeprefix(PREFIX) for name in names}
    if any(".resnets." in name for name in plain.values()):
        return {name: PREFIX + short for name, short in plain.items()}
    found = {name: LAYER.fullmatch(short) for name, short in plain.items()}
    matches = [match for match in found.values() if match]
    light = any(match[2] for match in matches)
    changes = [int(match[1]) for match in matches if match[3] == "in_conv" and not light]
    blocks = min(changes, default=USUAL_BLOCKS) or USUAL_BLOCKS
    result = {}
    for name, match in found.items():
        result[name] = PREFIX + plain[name]
        if match is None:
            continue
        number, inner, layer, end = match.groups()
        level, block = (int(number), inner) if light else divmod(int(number), blocks)
        if layer in ("block1", "block2") and block is not None:
            result[name] = f"{PREFIX}body.{level}.resnets.{block}.{layer}.{end}"
        elif light or block == 0:
            result[name] = f"{PREFIX}body.{level}.{layer}.{end}"
    return result


def config_of(path: Path, shapes: Shapes) -> T2IAdapterConfig:
    """Return the configuration of a file's T2I-Adapter, by the shapes in it, of diffusers' names.

    Raises CheckpointError for one that is damaged, or whose picture has an unknown form.
    """

    def shape(name: str) -> Sequence[int]:
        found = shapes.get(f"{PREFIX}{name}.weight", ())
        return found if len(found) == 4 else ()

    light = not shape("conv_in")
    first = shape("body.0.in_conv" if light else "conv_in")
    form = "body.{}.out_conv" if light else "body.{}.resnets.0.block1"
    widths: list[int] = []
    while found := shape(form.format(len(widths))):
        widths.append(found[0])
    blocks = 0
    while shape(f"body.0.resnets.{blocks}.block1"):
        blocks += 1
    if not first or not blocks or len(widths) < 1 + light:
        raise CheckpointError(f"{path} is a T2I-Adapter that lacks its first layers; it is damaged")
    if first[1] not in INPUTS:
        raise CheckpointError(
            f"{path} is a T2I-Adapter whose first layer reads {first[1]} channels; expected one of "
            f"{', '.join(map(str, INPUTS))}: give its folder with a config.json"
        )
    channels, factor = INPUTS[first[1]]
    kind = LIGHT if light else (XL if factor == 16 else TYPES[0])
    return T2IAdapterConfig(channels, tuple(widths[: -1 if light else None]), blocks, factor, kind)


def family_names(places: tuple[tuple[int, int], ...]) -> str:
    """Name the families by where features are added; else say where."""
    found = []
    for name in dict.fromkeys(FAMILIES.values()):
        family = read_family(name)
        theirs = unet_places(family.unet, FAMILY_SCALE)
        count = min(len(theirs), len(places))
        if theirs[:count] == places[:count]:
            found.append(family.name)
    if found:
        return " or ".join(found)
    parts = ", ".join(f"{width} channels at 1/{factor}" for width, factor in places)
    return f"one with features of {parts}"
