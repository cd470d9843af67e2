"""The device and the number format of a model that the user does not choose."""

from __future__ import annotations

import os

import torch

from ldm.errors import ArgumentError
from ldm.fast import onednn

DTYPE_BY_NAME = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device | None) -> torch.device:
    """Choose CUDA if it is available, else the CPU. Raises ArgumentError for a missing device."""
    if device is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        index = os.environ.get("LOCAL_RANK")  # this process, of several on the machine
        return torch.device("cuda" if index is None else f"cuda:{index}")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # "meta" fails here: it has no values
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"device is {str(device)!r:.80}, which does not work here "
            f"({str(error).splitlines()[0]:.200}); use 'cpu', or leave it out for CUDA if it is "
            "available"
        ) from None
    return device


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """Choose bfloat16 if the processor has it; else float32 on a CPU, float16 on CUDA.

    Raises ArgumentError for an unknown name, and for float16 on a CPU: ten times slower there.
    """
    if dtype is None:
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if native_bfloat16() else torch.float32
    if isinstance(dtype, str):
        if dtype not in DTYPE_BY_NAME:
            raise ArgumentError(
                f"dtype is {dtype!r:.80}; expected one of {', '.join(DTYPE_BY_NAME)}"
            )
        dtype = DTYPE_BY_NAME[dtype]
    if dtype == torch.float16 and device.type == "cpu":
        raise ArgumentError(
            "dtype is float16, which CPUs compute very slowly; use float32 or bfloat16 there"
        )
    return dtype


def native_bfloat16() -> bool:
    """Return whether this CPU multiplies bfloat16 itself: others are slower than with float32.

    Measured with AMX: twice as fast, 240 of the built-in model's pictures 47 dB from float32's.
    """
    return onednn.has_amx() or onednn.has_avx512_bfloat16()


def vae_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """Return the VAE's dtype in a model of ``dtype``: Stable Diffusion's overflows in float16."""
    return torch.float32 if dtype == torch.float16 else dtype
