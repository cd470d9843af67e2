"""The U-Net and the VAE of Stable Diffusion 1.5's size, one call each."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from itertools import accumulate

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from ldm.fast import decode_in_strips, speed_up
from ldm.fast.int8 import quantize
from tools.bench.models import allowed_error, ceiling, error, pair, share, unet_inputs
from tools.bench.race import Race
from tools.bench.sizes import at

SMALL = 16  # latents on which outcomes are compared


def guided_step(
    what: str, size: int, ours_in: torch.dtype, theirs_in: torch.dtype, last: bool, goal: float
) -> Race:
    """Race a guided step on latents of a size.

    last: diffusers' in channels_last, as its documentation advises.
    """
    ours, theirs = pair("unet")
    exact = theirs(*unet_inputs(theirs, SMALL, torch.float32)).sample
    theirs.to(theirs_in)
    if ours_in == theirs_in:  # one memory again
        ours = share(ours, theirs)
    ours.to(ours_in)
    if last:
        theirs.to(memory_format=torch.channels_last)
    speed_up(ours)

    def call_ours(size: int = size) -> Tensor:
        return ours(*unet_inputs(ours, size, ours_in))

    def call_theirs(size: int = size) -> Tensor:
        x, t, context = unet_inputs(theirs, size, theirs_in)
        x = x.contiguous(memory_format=torch.channels_last) if last else x
        return theirs(x, t, context).sample

    def check() -> tuple[float, float]:
        peer = error(call_theirs(SMALL), exact)
        if ours_in != theirs_in:  # the peer's own error would be float32's
            peer = 0.02
        return error(call_ours(SMALL), exact), allowed_error(peer, ours_in)

    more = partial(ceiling, call_ours)
    what = f"SD 1.5 step, {size}x{size}, {what}"
    return Race(what, call_ours, call_theirs, check, goal, turns=2, more=more)


def unet_bf16() -> Race:
    """Both in bfloat16."""
    bf16 = torch.bfloat16
    return guided_step("bf16", at(64, SMALL), bf16, bf16, True, 1.25)


def unet_default() -> Race:
    """Each in what its library takes where the processor has bfloat16."""
    what = "bf16 against diffusers' default (float32)"
    return guided_step(what, at(64, SMALL), torch.bfloat16, torch.float32, False, 2.3)


def unet_fp32() -> Race:
    """Both in float32."""
    fp32 = torch.float32
    return guided_step("float32", at(32, SMALL), fp32, fp32, False, 1.3)


def in_int8(dtype: torch.dtype, goal: float) -> Race:
    """Race a guided step in 8 bits against our own exact one."""
    exact, _ = pair("unet")
    exact.to(dtype)
    speed_up(exact)
    ours = copy.deepcopy(exact)
    quantize(ours)
    size = at(32, SMALL)
    x, t, context = unet_inputs(exact, size, dtype)

    def relative() -> dict[str, str]:
        return {"error": f"{error(ours(x, t, context), exact(x, t, context)):.1%} of the spread"}

    return Race(
        f"int8, SD 1.5 step, {size}x{size}, against {dtype}".replace("torch.", ""),
        lambda: ours(x, t, context),
        lambda: exact(x, t, context),
        lambda: (error(ours(x, t, context), exact(x, t, context)), 0.1),
        goal,
        "ldm exact",
        more=relative,
    )


def int8() -> Race:
    """Of the processors that have no fast bfloat16."""
    return in_int8(torch.float32, 1.4)


def int8_bf16() -> Race:
    """Of those that have."""
    return in_int8(torch.bfloat16, 1.4)


def decoders() -> tuple[
    Callable[..., Tensor], Callable[..., Tensor], Callable[..., Tensor], Tensor
]:
    """In bfloat16: ours with all that is on, ours in strips, diffusers'; and float32's picture."""
    ours, theirs = pair("vae")
    scale = ours.config.scaling_factor
    exact = theirs.decode(latents(SMALL, torch.float32) / scale).sample
    theirs.to(torch.bfloat16)
    ours = share(ours, theirs)
    theirs.to(memory_format=torch.channels_last)
    speed_up(ours)
    usual = at(64, SMALL)

    def strips(size: int = usual) -> Tensor:
        return decode_in_strips(ours, latents(size))

    def whole(size: int = usual) -> Tensor:
        return ours.decode(latents(size))

    def peer(size: int = usual) -> Tensor:
        z = latents(size).contiguous(memory_format=torch.channels_last)
        return theirs.decode(z / scale).sample

    return whole, strips, peer, exact


def latents(size: int, dtype: torch.dtype = torch.bfloat16) -> Tensor:
    """Of one picture."""
    return torch.randn((1, 4, size, size), generator=torch.Generator().manual_seed(1)).to(dtype)


def vae() -> Race:
    """Race the decoding of a picture of 512 pixels."""
    whole, _, peer, exact = decoders()  # which takes strips for such a picture by itself

    def check() -> tuple[float, float]:
        return error(whole(SMALL), exact), 1.5 * error(peer(SMALL), exact)

    more = partial(ceiling, whole)
    return Race(f"VAE decode, {at(512, 8 * SMALL)} px, bf16", whole, peer, check, 1.05, more=more)


def vae_memory() -> Race:
    """Compare the peak memory of tensors while decoding."""
    _, strips, peer, exact = decoders()

    def check() -> tuple[float, float]:
        return error(strips(SMALL), exact), 1.5 * error(peer(SMALL), exact)

    return Race(
        f"VAE decode in strips, {at(512, 8 * SMALL)} px, bf16: peak memory, MB",
        lambda: peak(strips),
        lambda: peak(peer),
        check,
        1 / 0.35,
        measured=True,
    )


def peak(action: Callable[[], object]) -> float:
    """MB of the tensors that an action makes and that are alive at once, at most.

    What the process holds would tell of the C library, too: it keeps what is given up.
    """
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        action()
    sizes = (e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]")
    return max(accumulate(sizes)) / 1e6
