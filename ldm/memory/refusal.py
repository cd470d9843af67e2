"""What cannot fit is an error before it begins, with what would fit."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import replace

from ldm.errors import NotEnoughMemoryError
from ldm.memory.estimate import Drawing, MemoryNeeded, Networks, estimate
from ldm.memory.system import gigabytes
from ldm.memory.thrift import HOLES, be_thrifty

OVERRIDE = "LDM_MEMORY"  # the environment variable; "ignore" tries whatever is asked for
LEAST = 64  # pixels of a side that is proposed


def fits(needed: MemoryNeeded) -> bool:
    """Whether there is enough memory, as far as that is known."""
    # No margin: estimates were measured to be 0.9 to 1.1 times what is taken, and those below 1
    # miss some megabytes of small runs.
    return needed.available is None or needed.missing <= needed.available


def check_fits(
    model: Networks,
    drawing: Drawing,
    measure: Callable[[], int | None],
    free: Callable[[], object] = lambda: None,
) -> None:
    """Raise NotEnoughMemoryError for what cannot fit, with the ways out that would.

    Where it fits tightly, the C library is made to keep no freed memory from now on.
    measure: returns the bytes that are available. free: frees what is kept to be fast.
    """
    available = measure()
    needed = estimate(model, drawing, available)
    weights = max(0, needed.weights - needed.loaded)
    with_holes = weights + HOLES * needed.activations
    if available is None or with_holes <= available or os.environ.get(OVERRIDE) == "ignore":
        return
    be_thrifty()
    free()
    available = measure()
    if fits(estimate(model, drawing, available)):
        return
    assert available is not None  # see ``fits``
    needed = estimate(model, drawing, available)
    ways = list(ways_out(model, drawing, available))
    advice = f"what fits: {', or '.join(ways)}" if ways else "no smaller picture of it fits, either"
    what = f"{drawing.count} pictures of" if drawing.count > 1 else "a picture of"
    raise NotEnoughMemoryError(
        f"{what} {drawing.width}x{drawing.height} would need {gigabytes(needed.missing)} more "
        f"memory, of which {gigabytes(available)} is available; {advice} "
        f"({OVERRIDE}=ignore tries nevertheless)"
    )


def ways_out(model: Networks, drawing: Drawing, available: int) -> Iterator[str]:
    """Yield what would fit, by the same estimate."""

    def works(model: Networks, drawing: Drawing) -> bool:
        return fits(estimate(model, drawing, available))

    fewer = largest(1, drawing.count - 1, lambda n: works(model, replace(drawing, count=n)))
    if fewer:
        yield f"{fewer} at once (--batch-size {fewer})"
    if model.device == "cuda" and model.offload != "sequential":
        away = replace(model, offload=True, loaded=False)
        rounded = replace(away, int8_weights=True)
        if not model.offload and works(away, drawing):
            yield "one part on the GPU at a time (--offload, optimize(offload=True))"
        elif not model.int8_weights and works(rounded, drawing):
            yield (
                "one part on the GPU at a time, its weights in 8 bits (--int8-weights, "
                "optimize(int8_weights=True))"
            )
        elif works(replace(away, offload="sequential"), drawing):
            yield (
                "two blocks on the GPU at a time (--sequential-offload, "
                'optimize(offload="sequential"))'
            )
    if model.itemsize == 4 and works(in_half(model), drawing):
        yield "half precision (--dtype bfloat16)"
    one = replace(drawing, count=1)
    if not fewer:
        step = max(model.scale, 8)
        longer = max(drawing.height, drawing.width)
        side = largest(
            LEAST // step, longer // step - 1, lambda n: works(model, scaled(one, n * step, step))
        )
        if side:
            small = scaled(one, side * step, step)
            yield f"{small.width}x{small.height}"


def in_half(model: Networks) -> Networks:
    """Return the networks in a number format of half the bytes."""
    weights = {name: size // 2 for name, size in model.weights.items()}
    blocks = model.by_blocks // 2
    return replace(
        model, itemsize=2, codec_itemsize=2, weights=weights, loaded=False, by_blocks=blocks
    )


def scaled(drawing: Drawing, longer: int, step: int) -> Drawing:
    """Return the drawing with a longer side of so many pixels, in the same shape."""
    factor = longer / max(drawing.height, drawing.width)
    height, width = (
        max(step, int(side * factor) // step * step) for side in (drawing.height, drawing.width)
    )
    return replace(drawing, height=height, width=width)


def largest(low: int, high: int, works: Callable[[int], bool]) -> int | None:
    """Return the largest number in [low, high] that works, if smaller ones do; None for none."""
    if high < low or not works(low):
        return None
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if works(middle) else (low, middle - 1)
    return low
