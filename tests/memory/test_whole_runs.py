"""The estimate that decides is within 10 % of what a process takes, for small runs, and 4 MB.

Each is measured in a process of its own, as ``tools.memory_estimates`` does.
"""

from __future__ import annotations

import sys

import pytest
import torch

from tools.memory_estimates import CLEAR, Case, in_process

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="it reads /proc"),
    pytest.mark.slow,
]
NEAR = 0.1  # by which it may be wrong, in parts of what was taken
KERNELS = 4 << 20  # … and bytes: what kernels take varies so much from environment to environment
BF16 = "bfloat16"
CASES = [
    Case("builtin", "float32", 256),
    Case("builtin", "float32", 384, optimize=False),
    Case("builtin", "float32", 256, 4, guided=False),
    Case("builtin", BF16, 256, 4),
    Case("builtin", BF16, 384, optimize=False),
    Case("builtin", BF16, 384, image=True),
]


@pytest.mark.skipif(not CLEAR.exists(), reason="the system counts no peaks anew")
@pytest.mark.parametrize("case", CASES, ids=str)
def test_the_estimate(case: Case) -> None:
    if case.dtype == BF16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        pytest.skip("this processor converts bfloat16 to compute, in memory of its own")
    estimated, taken = in_process(case, usual=False)
    assert abs(estimated - taken) <= NEAR * taken + KERNELS
