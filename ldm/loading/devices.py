"""Which device and which number format a model runs in when the user does not say."""

from __future__ import annotations

import os

import torch

from ldm.errors import ArgumentError
from ldm.fast import onednn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def choose_device(device: str | torch.device | None) -> torch.device:
    """CUDA where there is one, else the CPU. Raises ArgumentError for one that is not there."""
    if device is None:
        if not torch.cuda.is_available():
            return torch.device("cpu")
        index = os.environ.get("LOCAL_RANK")  # of several processes on this machine
        return torch.device("cuda" if index is None else f"cuda:{index}")
    try:
        device = torch.device(device)
        torch.zeros(1, device=device).item()  # "meta" fails here: it has no values
    except (RuntimeError, AssertionError) as error:
        raise ArgumentError(
            f"device is {str(device)!r}, which does not work here ({str(error).splitlines()[0]}); "
            "use 'cpu', or leave it out to have CUDA where there is one"
        ) from None
    return device


def choose_dtype(dtype: str | torch.dtype | None, device: torch.device) -> torch.dtype:
    """bfloat16 where the processor has it; else float32 on a CPU, float16 on CUDA.

    Raises ArgumentError for an unknown name, and for float16 on a CPU: ten times slower there.
    """
    if dtype is None:
        if device.type == "cuda":
            return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
        return torch.bfloat16 if native_bfloat16() else torch.float32
    if isinstance(dtype, str):
        if dtype not in DTYPES:
            raise ArgumentError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        dtype = DTYPES[dtype]
    if dtype == torch.float16 and device.type == "cpu":
        raise ArgumentError(
            "dtype is float16, which CPUs compute very slowly; use float32 or bfloat16 there"
        )
    return dtype


def native_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 itself: others take longer with it than with float32.

    Measured with AMX: twice as fast, 240 of the built-in model's pictures 47 dB from float32's.
    """
    return onednn.has_amx() or onednn.has_avx512_bfloat16()


def vae_dtype(dtype: torch.dtype | None) -> torch.dtype | None:
    """The VAE's, of a model in ``dtype``: Stable Diffusion's overflows in float16."""
    return torch.float32 if dtype == torch.float16 else dtype
