"""Where the randomness of a training step comes from."""

from __future__ import annotations

import torch


def step_generator(seed: int, step: int) -> torch.Generator:
    """Return the generator of everything random in one training step."""
    return torch.Generator().manual_seed((seed * 1_000_003 + step) % 2**63)
