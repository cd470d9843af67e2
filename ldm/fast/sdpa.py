"""Which of PyTorch's attention kernels computes on CUDA: cuDNN's first on Hopper and later.

PyTorch takes the first of its order that can compute a call: its dtype, head size and strides. By
default flash attention comes first, cuDNN's last (torch 2.13).
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator

import torch

HOPPER = (9, 0)  # the compute capability from which on cuDNN's kernel is made for the GPU


class FastestAttention:
    """An order of kernels, for as long as any thread is inside; PyTorch's order is the process's.

    What is switched off by ``torch.backends.cuda.enable_flash_sdp(False)`` and the like stays off.
    """

    def __init__(self) -> None:
        self._lock, self._inside, self._order = threading.Lock(), 0, contextlib.ExitStack()

    @contextlib.contextmanager
    def __call__(self, device: torch.device) -> Iterator[None]:
        """Prefer the fastest kernels of a device inside; on others than Hopper, do nothing."""
        if device.type != "cuda" or torch.cuda.get_device_capability(device) < HOPPER:
            yield
            return
        with self._lock:
            if not self._inside:
                self._enter()
            self._inside += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= 1
                if not self._inside:
                    self._order.close()

    def _enter(self) -> None:
        from torch.nn.attention import SDPBackend, sdpa_kernel

        on = torch.backends.cuda
        kernels = {
            SDPBackend.CUDNN_ATTENTION: on.cudnn_sdp_enabled(),
            SDPBackend.FLASH_ATTENTION: on.flash_sdp_enabled(),
            SDPBackend.EFFICIENT_ATTENTION: on.mem_efficient_sdp_enabled(),
            SDPBackend.MATH: on.math_sdp_enabled(),
        }
        order = [kernel for kernel, enabled in kernels.items() if enabled]
        if order:
            self._order.enter_context(sdpa_kernel(order, set_priority=True))


fastest_attention = FastestAttention()
