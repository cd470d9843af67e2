"""Which layers of a network get adapters: by kohya's custom, or by patterns of their names."""

from __future__ import annotations

import re
from collections.abc import Sequence

from torch import nn

from ldm.clip import CLIPTextEncoder
from ldm.errors import ArgumentError, did_you_mean

ATTENTION = ("to_q", "to_k", "to_v", "to_out.0")  # what diffusers' examples take
# kohya's: all linear layers of the transformers, and the 1×1 convolutions around them.
TRANSFORMERS = (*ATTENTION, "ff.net.0.proj", "ff.net.2", "proj_in", "proj_out")
CONVOLUTIONS = (r".*\.(?:resnets|downsamplers|upsamplers)\..*",)  # LoCon's, beside these
TEXT = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")
ADAPTABLE = (nn.Linear, nn.Conv2d)


def choose_layers(
    network: nn.Module, patterns: Sequence[str], convolutions: bool = False, unread: int = 0
) -> dict[str, nn.Linear | nn.Conv2d]:
    """Return the layers that get adapters, by their paths.

    patterns: as peft's ``target_modules``, the end of a path ("to_q", "mid_block.attentions.0…") or
        a regular expression for a whole one; without any, kohya's choice.
    convolutions: whether the residual blocks' and resamplers' layers get adapters, too (LoCon).
    unread: how many of the last layers of a text encoder have no influence, and get none.
    Raises ArgumentError for a pattern that fits no layer.
    """
    text = isinstance(network, CLIPTextEncoder)
    layers = len(network.text_model.encoder.layers) if isinstance(network, CLIPTextEncoder) else 0
    chosen = tuple(patterns) or (TEXT if text else TRANSFORMERS)
    known = {path: layer for path, layer in network.named_modules() if isinstance(layer, ADAPTABLE)}
    beyond = tuple(f"text_model.encoder.layers.{i}." for i in range(layers - unread, layers))
    found: dict[str, nn.Linear | nn.Conv2d] = {}
    for pattern in chosen + (CONVOLUTIONS if convolutions and not text else ()):
        fitting = {path: layer for path, layer in known.items() if fits(path, pattern)}
        if not fitting and pattern in patterns:
            names = sorted({path.rpartition(".")[2] for path in known})
            hint = did_you_mean(pattern, names) or f"names are {', '.join(names)}"
            raise ArgumentError(
                f"targets holds {pattern!r:.200}, which is the name of no layer of the "
                f"{'text encoder' if text else 'U-Net'}; {hint}"
            )
        found |= fitting
    return {
        path: layer
        for path, layer in known.items()
        if path in found and not path.startswith(beyond)
    }


def fits(path: str, pattern: str) -> bool:
    """Whether a pattern is the end of a path, or a regular expression for all of it.

    Raises ArgumentError for neither.
    """
    if path == pattern or path.endswith(f".{pattern}"):
        return True
    try:
        return re.fullmatch(pattern, path) is not None
    except (re.error, RecursionError, OverflowError) as error:
        raise ArgumentError(
            f"targets holds {pattern!r:.200}, no regular expression ({error})"
        ) from None
