"""How cost grows with the size of pictures and their number, ours and diffusers'.

`python -m tools.bench --only scale` runs all of it: a U-Net's call for so many pictures of so many
pixels, in bfloat16, of Stable Diffusion 1.5's and XL's sizes. Operations are counted on "meta"
tensors, those of attention among them, so that time for each of them says whether anything grows
faster than the arithmetic. A row that would take too long (`--minutes`) or too much memory is
skipped, with the reason.
"""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ldm.checkpoints.folder import empty
from ldm.config import UNetConfig
from ldm.fast import speed_up
from ldm.memory import networks
from ldm.memory.layers import Kernels
from ldm.memory.system import available_memory, gigabytes
from ldm.unet import UNet
from tools.bench.models import error, pair
from tools.bench.networks import SMALL, peak
from tools.bench.race import Race, SkipError
from tools.bench.sizes import at, family

SIDES, COUNTS = (512, 768, 1024), (1, 2, 4, 8)
NAMES = {"sd1": "SD 1.5", "sdxl": "SD XL"}
DTYPE, ITEM = torch.bfloat16, 2
TOKENS, SCALE = 77, 8  # pixels of a latent, along a side
GROWTH, TOGETHER = 1.1, 1.05  # times that of the smallest, and of single pictures, it may take
CALLS = 3 * 2  # of both: the first one, the one that memory is measured in, and the timed one
SOON = 10.0  # seconds of a call up to which it is timed twice
MINUTES = 10.0  # that a row may take


class Inputs(NamedTuple):
    """What a call reads: latents, times, texts and, for XL, their pooled states and sizes."""

    x: Tensor
    t: Tensor
    context: Tensor
    pooled: Tensor | None
    time_ids: Tensor | None


@dataclass
class Measured:
    """What the rows of a family have taken so far; seconds and MB by (side, count)."""

    ours: nn.Module
    theirs: nn.Module
    seconds: dict[tuple[int, int], tuple[float, float]] = field(default_factory=dict)


@functools.lru_cache(maxsize=1)  # one family at a time: XL's two take 10 GB
def loaded(name: str) -> Measured:
    """Make both networks of a family."""
    weights = 2 * ITEM * parameters(family(name).unet)
    free = available_memory()
    if free is not None and weights > free:
        raise SkipError(f"both networks take {gigabytes(weights)}; {gigabytes(free)} are free")
    ours, theirs = pair("unet", name, DTYPE)
    theirs.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    speed_up(ours)
    return Measured(ours, theirs)


@functools.cache
def parameters(config: UNetConfig) -> int:
    """Count the weights of a U-Net."""
    return sum(p.numel() for p in empty(UNet, config).parameters())


def inputs(config: UNetConfig, count: int, side: int) -> Inputs:
    """Make what a call reads; side: of the latents."""
    generator = torch.Generator().manual_seed(1)

    def noise(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cpu").to(DTYPE)

    x = noise(count, config.in_channels, side, side)
    context = noise(count, TOKENS, config.cross_attention_dim or 0)
    pooled, sizes = None, None
    if config.addition_embed_type is not None:
        width = config.projection_class_embeddings_input_dim or 0
        pooled = noise(count, width - 6 * (config.addition_time_embed_dim or 0))
        sizes = torch.tensor([[1024.0, 1024, 0, 0, 1024, 1024]]).repeat(count, 1)
    return Inputs(x, torch.full((count,), 500.0), context, pooled, sizes)


@functools.cache
def operations(config: UNetConfig, side: int) -> int:
    """Count floating point operations of a call for one picture; side: of the latents."""
    unet = empty(UNet, config).to(DTYPE)
    given = (None if x is None else x.to("meta") for x in inputs(config, 1, side))
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        unet(*given)
    return int(counter.get_total_flops())


def check_affordable(
    config: UNetConfig, found: Measured, count: int, side: int, minutes: float
) -> float:
    """Return the seconds that a call may take. Raises SkipError for too many or too much memory."""
    needed = networks.unet_call(config, side, side, Kernels(ITEM)) * count * ITEM
    free = available_memory()
    if free is not None and needed > free:
        raise SkipError(f"diffusers would take {gigabytes(needed)}; {gigabytes(free)} are free")
    work = count * operations(config, side)
    rates = [max(taken) / (n * operations(config, s)) for (s, n), taken in found.seconds.items()]
    expected = max(rates, default=0.0) * work
    if expected * CALLS > minutes * 60:
        raise SkipError(
            f"would take about {expected * CALLS / 60:.0f} minutes; --minutes allows more"
        )
    return expected


def growth(config: UNetConfig, found: Measured, side: int, count: int) -> dict[str, Any]:
    """Compare a row with the smallest one by its operations, and with as many single pictures."""
    taken = found.seconds[side, count]
    (least_side, least_count), least = next(iter(found.seconds.items()))
    work = count * operations(config, side)
    times = work / (least_count * operations(config, least_side))
    result: dict[str, Any] = {"GFLOP": round(work / 1e9)}

    def compare(name: str, ratios: list[float], most: float) -> None:
        word = " (**more than the arithmetic**)" if ratios[0] > most else ""
        result[name] = f"{ratios[0]:.2f} and {ratios[1]:.2f}{word}"

    if times > 1:
        ratios = [now / (times * before) for now, before in zip(taken, least, strict=True)]
        compare("time per operation, of the smallest's", ratios, GROWTH)
    if count > 1 and (side, 1) in found.seconds:
        singles = found.seconds[side, 1]
        ratios = [now / (count * one) for now, one in zip(taken, singles, strict=True)]
        compare(f"time of {count} singles", ratios, TOGETHER)
    return result


def row(name: str, pixels: int, count: int, minutes: float = MINUTES) -> Race:
    """Race a call for so many pictures."""
    config, side = family(name).unet, at(pixels, pixels // 4) // SCALE
    found = loaded(name)
    expected = check_affordable(config, found, count, side, minutes)
    given, small = inputs(config, count, side), inputs(config, 1, SMALL)

    def call_ours(given: Inputs = given) -> Tensor:
        most = networks.rows_at_once(*given.x.shape[2:])  # as `Denoiser` has it
        starts = range(0, len(given.x), most)
        parts = ([None if x is None else x[i : i + most] for x in given] for i in starts)
        return torch.cat([found.ours(*part) for part in parts])

    def call_theirs(given: Inputs = given) -> Tensor:
        added = {"text_embeds": given.pooled, "time_ids": given.time_ids}
        x = given.x.contiguous(memory_format=torch.channels_last)
        more = {} if given.pooled is None else {"added_cond_kwargs": added}
        return found.theirs(x, given.t, given.context, **more).sample

    def more() -> dict[str, Any]:
        taken = []
        for call in (call_ours, call_theirs):
            gc.collect()
            taken.append(peak(call))
        return {"peak of tensors, MB": " and ".join(f"{each:.0f}" for each in taken)}

    def of_medians(ours: float, theirs: float) -> dict[str, Any]:
        found.seconds[side, count] = (ours, theirs)
        return growth(config, found, side, count)

    return Race(
        f"{NAMES[name]}, a call, {side * SCALE} px, {count} at once, bf16",
        call_ours,
        call_theirs,
        lambda: (error(call_ours(small), call_theirs(small)), 0.05),
        1.0,
        turns=1 if expected > SOON else 2,
        more=more,
        of_medians=of_medians,
    )


SECTIONS: dict[str, Callable[..., Race]] = {
    f"scale-{name}-{pixels}-{count}": partial(row, name, pixels, count)
    for name in NAMES
    for pixels in SIDES
    for count in COUNTS
}
