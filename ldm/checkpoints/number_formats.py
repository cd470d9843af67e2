"""The number formats that weights are written in, and which weights keep a finer one.

In float8, only the weights of linear layers and convolutions of the U-Net and the text encoders
are; biases, norms, the words' and the time's embeddings, the U-Net's first and last layer and the
whole VAE are float16: they are a twentieth of the size and most of the error.

In Q8_0, only linear layers are, as stable-diffusion.cpp quantises: blocks of 32 values do not fit
the rows of a 3×3 convolution. Embeddings and other weights are float16, biases and norms float32.
"""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from ldm.checkpoints.deferred import FLOAT8
from ldm.errors import CheckpointError

Q8_0 = "q8_0"  # blocks of 32 values in 8 bits each, with a scale in float16
DTYPES = {
    **{"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16},
    **{"float8_e4m3fn": torch.float8_e4m3fn, "float8_e5m2": torch.float8_e5m2},
}
GGUF_TYPES: dict[torch.dtype | str, str] = {
    Q8_0: "Q8_0", torch.float16: "F16", torch.bfloat16: "BF16", torch.float32: "F32",
}  # fmt: skip
FORMATS: dict[str, Any] = {**DTYPES, Q8_0: Q8_0}
# In a folder's names; those of the VAE, then of all networks.
NOT_FLOAT8 = re.compile(r"^(?:encoder|decoder|(?:post_)?quant_conv)\.|^conv_(?:in|out)\.|embedding")
# In a single file's names, as stable-diffusion.cpp has it.
NOT_IN_BLOCKS = re.compile(r"\.bias$|time_embed\.|label_emb\.|embedding|text_projection")


def float_format(name: str, value: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    """Return the dtype to write a tensor in, by its name in a folder; None keeps its own."""
    if dtype in FLOAT8 and (value.ndim < 2 or NOT_FLOAT8.search(name)):
        return torch.float16
    return dtype or value.dtype


def gguf_format(name: str, value: Tensor, kind: torch.dtype | str) -> str:
    """Return the type of a GGUF to write a tensor in, by its name in a single file."""
    if value.ndim < 2:
        return "F32"
    if kind == Q8_0 and (value.shape[-1] % 32 or NOT_IN_BLOCKS.search(name)):
        return "F16"
    return GGUF_TYPES[kind]


def check_range(name: str, value: Tensor, kind: str, most: float | None = None) -> None:
    """Raise CheckpointError for values that are not finite, or beyond ±``most`` of a format."""
    beyond = most is not None and value.numel() and value.abs().max().item() > most
    if beyond or not value.isfinite().all():
        raise CheckpointError(
            f"{name} has values that are NaN or infinite in {kind}, so it is not saved; "
            "try float32 or bfloat16, or get the model again"
        )
