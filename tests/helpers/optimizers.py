"""All optimizers of the trainer, skipped where their packages are not installed."""

from __future__ import annotations

from typing import Any

import pytest

OPTIMIZERS = ["adamw", "muon", "adamw8bit", "adafactor", "adafactor-first-moment", "prodigy"]
PACKAGES = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt"}


def settings_of(name: str) -> dict[str, Any]:
    """Settings of a run with the optimizer."""
    if name in PACKAGES:
        pytest.importorskip(PACKAGES[name])
    if name == "prodigy":  # a large first estimate, so that a few steps move it
        return {"optimizer": name, "learning_rate": 1.0, "optimizer_options": {"d0": 1e-3}}
    if name == "adafactor-first-moment":
        return {"optimizer": "adafactor", "optimizer_options": {"beta1": 0.9}}
    return {"optimizer": name}
