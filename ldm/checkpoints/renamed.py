"""Names that stable-diffusion.cpp's converter gave to OpenCLIP's text encoders until 2026.

It wrote them under transformers' names, except two tensors: all that it renamed is at
https://github.com/leejet/stable-diffusion.cpp/blob/master/src/name_conversion.cpp.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial

from torch import Tensor

from ldm.checkpoints.deferred import Stored, change, take_third

PROJECTION = re.compile(r"(.*transformer\.)text_model\.text_projection")
QKV = re.compile(r"(.*transformer\.text_model\..+\.self_attn\.)in_proj\.(weight|bias)")
THIRDS = ("q_proj", "k_proj", "v_proj")


def undo_renaming(tensors: Mapping[str, Stored]) -> dict[str, Stored]:
    """Give such tensors the names and the layout of transformers."""
    renamed: dict[str, Stored] = {}
    for key, value in tensors.items():
        if found := PROJECTION.fullmatch(key):  # OpenCLIP multiplies by it from the other side
            renamed[f"{found[1]}text_projection.weight"] = change(value, _transposed)
        elif (found := QKV.fullmatch(key)) and value.ndim and value.shape[0] % 3 == 0:
            for i, third in enumerate(THIRDS):
                renamed[f"{found[1]}{third}.{found[2]}"] = change(
                    value, partial(take_third, index=i)
                )
        else:
            renamed[key] = value
    return renamed


def _transposed(x: Tensor) -> Tensor:
    return x.T.contiguous() if x.ndim == 2 else x
