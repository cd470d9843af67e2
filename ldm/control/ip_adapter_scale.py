"""How much an IP-Adapter counts: one number, a number for each picture, or numbers by block.

    0.6    {"up": {"block_0": [0.0, 1.0, 0.0]}}    {"down": 0.5, "mid": 1.0}

By block, as in diffusers: what is not named is 0. Source of "style" and "layout": Wang et al. 2024,
"InstantStyle: Free lunch towards style-preserving in text-to-image generation", section 3.3.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from torch import nn

from ldm.errors import ArgumentError
from ldm.layers import TransformerBlock
from ldm.unet import UNet

STYLE = {"up": {"block_0": [0.0, 1.0, 0.0]}}
LAYOUT = {"down": {"block_2": [0.0, 1.0]}}
BLOCKS: dict[str, Any] = {"style": STYLE, "layout": LAYOUT, "style+layout": STYLE | LAYOUT}
Each = float | list[float]  # a list has the scale of each picture
EXPECTED = 'expected a number, or a dict such as {"up": {"block_0": [0.0, 1.0, 0.0]}}'


def attention_names(unet: UNet) -> dict[str, list[nn.Module]]:
    """Return the transformer blocks of each spatial transformer, by its name in checkpoints."""
    found: dict[str, list[nn.Module]] = {}
    for name, module in unet.named_modules():
        if isinstance(module, TransformerBlock):
            found.setdefault(name.rpartition(".transformer_blocks")[0], []).append(module)
    return found


def check_scale(unet: UNet, scale: Any) -> None:
    """Raise ArgumentError for a scale that does not fit the U-Net."""
    if isinstance(scale, Mapping):
        expand(unet, scale)
    else:
        as_number(scale)


def as_number(value: Any) -> Each:
    """Return a scale that is a number, or a list of numbers. Raises ArgumentError for others."""
    if isinstance(value, list | tuple) and value:
        return [float(as_one(one)) for one in value]
    return as_one(value)


def as_one(value: Any) -> float:
    """Return a scale that is a finite number."""
    if isinstance(value, bool) or not isinstance(value, Real) or abs(value) == float("inf"):
        raise ArgumentError(f"the scale of an IP-Adapter is {value!r:.60}; {EXPECTED}")
    if value != value:
        raise ArgumentError(f"the scale of an IP-Adapter is NaN; {EXPECTED}")
    return float(value)


def expand(unet: UNet, scale: Mapping[str, Any]) -> dict[nn.Module, Each]:
    """Return the scale of each transformer block that a dict names.

    Raises ArgumentError for a name that the U-Net has not, and for a wrong number of values.
    """
    names = attention_names(unet)
    found: dict[nn.Module, Each] = {}
    for way, inner in scale.items():
        if way not in ("down", "mid", "up"):
            raise ArgumentError(f"a scale by block names {way!r:.40}; expected down, mid or up")
        if way == "mid":
            parts = {"mid": (["mid_block.attentions.0"], inner)}
        else:
            parts = {
                f"{way}.{block}": (attentions(names, way, block), value)
                for block, value in blocks_of(names, way, inner).items()
            }
        for label, (attention, value) in parts.items():
            for name, one in zip(attention, spread(value, len(attention), label), strict=True):
                if name not in names:
                    raise ArgumentError(f"a scale names {label}, but this U-Net has no text there")
                found |= dict.fromkeys(names[name], as_number(one))
    return found


def blocks_of(names: Mapping[str, Any], way: str, inner: Any) -> dict[str, Any]:
    """Return the values of one way by block; one value is for all."""
    if isinstance(inner, Mapping):
        return dict(inner)
    present = dict.fromkeys(n.split(".")[1] for n in names if n.startswith(f"{way}_blocks."))
    return {f"block_{index}": inner for index in present}


def attentions(names: Mapping[str, Any], way: str, block: str) -> list[str]:
    """Return the names of a block's spatial transformers. Raises ArgumentError without one."""
    prefix = f"{way}_blocks.{block.removeprefix('block_')}.attentions."
    found = [name for name in names if name.startswith(prefix)]
    if not found or not block.startswith("block_"):
        every = dict.fromkeys(
            f"block_{n.split('.')[1]}" for n in names if n.startswith(f"{way}_blocks.")
        )
        raise ArgumentError(
            f"a scale names {way}.{block}, where this U-Net reads no text; it does in "
            f"{', '.join(every)}"
        )
    return found


def spread(value: Any, count: int, label: str) -> Sequence[Any]:
    """Return one value for each of a block's spatial transformers."""
    if not isinstance(value, list | tuple):
        return [value] * count
    if len(value) == 1:
        return list(value) * count
    if len(value) != count:
        raise ArgumentError(f"a scale has {len(value)} values for {label}; expected {count}")
    return value


def block_scales(unet: UNet, scale: Any, factor: float | None, blocks: str) -> Any:
    """Return λ as ``IPAdapter.prompt`` takes it.

    scale: as it was set. factor: a run's own number in its place, if it has one. blocks: a run's
    "style", "layout" or "style+layout"; those are of SDXL's U-Net.
    Raises ArgumentError for a U-Net without these blocks.
    """
    if blocks != "all":
        number = as_number(scale) if factor is None and not isinstance(scale, Mapping) else factor
        try:
            chosen = expand(unet, BLOCKS[blocks])
        except ArgumentError:
            raise ArgumentError(
                f"ip_adapter_blocks is {blocks!r}, which names blocks of Stable Diffusion XL; this "
                "model has others: set_ip_adapter_scale takes scales by block"
            ) from None
        number = 1.0 if number is None else number
        return {block: number for block, one in chosen.items() if one}
    if factor is not None:
        return factor
    return expand(unet, scale) if isinstance(scale, Mapping) else as_number(scale)
