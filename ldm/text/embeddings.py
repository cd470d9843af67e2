"""Embeddings that a caller gives in place of texts: ``prompt_embeds`` and its like."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from ldm.errors import ArgumentError
from ldm.text.conditioning import Conditioning, Prompted, Script


def use_embeddings(
    prompted: Sequence[Prompted],
    context: Tensor | None,
    negative: Tensor | None,
    pooled: Tensor | None = None,
    negative_pooled: Tensor | None = None,
    zeros: bool = False,
) -> list[Prompted]:
    """Replace the conditioning of texts by embeddings, as diffusers' ``prompt_embeds``.

    Args:
        prompted: of each prompt, encoded from texts; one for each row of the embeddings.
        context, negative: (b, n, D), for the prompts and the negative ones; None keeps the texts'.
        pooled, negative_pooled: (b, P), for SDXL, which needs them beside the others.
        zeros: whether zeros stand for missing negative embeddings (see
            ``force_zeros_for_empty_prompt``).

    Raises ArgumentError for embeddings of a shape that this model does not read, or of which one
    part is missing.
    """
    like = prompted[0].scripts[0].lines[0][1]
    check("prompt_embeds", context, pooled, like, len(prompted))
    check("negative_prompt_embeds", negative, negative_pooled, like, len(prompted))
    if zeros and context is not None and negative is None:
        negative = torch.zeros_like(context)
        negative_pooled = None if pooled is None else torch.zeros_like(pooled)
    results = []
    for i, one in enumerate(prompted):
        if context is not None:
            script = embedded(one.scripts[0], context[i], None if pooled is None else pooled[i])
            one = replace(one, scripts=(script,))
        if negative is not None:
            states = None if negative_pooled is None else negative_pooled[i]
            one = replace(one, negative=embedded(one.negative, negative[i], states))
        results.append(one)
    return results


def embedded(text: Script, context: Tensor, pooled: Tensor | None) -> Script:
    """Return a script with these states, and the sizes of ``text``, at all steps."""
    last, old = text.lines[-1]
    assert old.context is not None  # every text has one
    states = None if pooled is None else pooled.to(old.context)
    return Script(((last, replace(old, context=context.to(old.context), pooled=states)),))


def check(
    name: str, context: Tensor | None, pooled: Tensor | None, like: Conditioning, count: int
) -> None:
    """Raise ArgumentError for embeddings unlike the states of a text."""
    pooled_name = name.replace("prompt", "pooled_prompt")
    assert like.context is not None  # every text has one
    if context is None:
        if pooled is not None:
            raise ArgumentError(f"{pooled_name} goes with {name}; give that, too")
        return
    widths = {name: (context, like.context.shape[-1])}
    if like.pooled is not None:
        if pooled is None:
            raise ArgumentError(f"{name} needs {pooled_name} with this model; give that, too")
        widths[pooled_name] = (pooled, like.pooled.shape[-1])
    elif pooled is not None:
        raise ArgumentError(f"{pooled_name} is of SDXL, and this model is not; leave it out")
    for argument, (value, width) in widths.items():
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise ArgumentError(f"{argument} must be a tensor of floating-point numbers")
        if value.shape[-1] != width or 0 in value.shape:
            raise ArgumentError(
                f"{argument} has the shape {tuple(value.shape)}; this model reads a width of "
                f"{width} at the end"
            )
        if len(value) != count:
            raise ArgumentError(f"{argument} has {len(value)} rows for {count} prompts")
        if not value.isfinite().all():
            raise ArgumentError(f"{argument} has values that are NaN or infinite")
