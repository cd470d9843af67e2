"""The settings of a LoRA that are not in its tensors: peft's config, in the metadata or beside."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ldm.checkpoints.lora_names import Module

METADATA = "lora_adapter_metadata"  # diffusers ≥ 0.34 writes peft's LoraConfig there
BESIDE = "adapter_config.json"  # peft writes it beside adapter_model.safetensors
MOST_BYTES = 1 << 20


class Alphas:
    """The α that diffusers and peft keep in settings instead of tensors."""

    def __init__(self, metadata: Mapping[str, str], path: Path | None = None) -> None:
        """Read a file's metadata, or the settings beside peft's ``adapter_model``.

        Raises ValueError for settings that cannot be read.
        """
        self.orders: dict[int, dict[str, int]] = {}
        self.source, text = METADATA, metadata.get(METADATA) or ""
        if not text and path is not None and path.stem == "adapter_model":
            beside = path.with_name(BESIDE)
            if beside.is_file():
                self.source, text = BESIDE, beside.read_bytes()[: MOST_BYTES + 1].decode()
        try:
            if len(text) > MOST_BYTES:
                raise ValueError
            self.settings: dict[str, Any] = json.loads(text or "{}")
            self.settings.keys()
        except (ValueError, AttributeError, RecursionError):
            raise ValueError(f"its {self.source} is no JSON object") from None

    def order(self, patterns: dict[str, Any]) -> dict[str, int]:
        """Return the place of each pattern, which is counted once."""
        if id(patterns) not in self.orders:
            self.orders[id(patterns)] = {name: i for i, name in enumerate(patterns)}
        return self.orders[id(patterns)]

    def find(self, module: Module, rank: int) -> float | None:
        """Return α of a module, so that α/rank is its scale; None if the file does not state it."""
        part, path = module

        def setting(name: str) -> Any:
            # A U-Net that was saved alone has settings without its name.
            return self.settings.get(f"{part}.{name}", self.settings.get(name))

        alpha = setting("lora_alpha")
        if alpha is None:
            alpha = setting("alpha")  # of LoHa and LoKr
        patterns = setting("alpha_pattern")
        if isinstance(patterns, dict):
            # peft takes the first that fits, as a regular expression; those in files are the ends
            # of paths.
            words = path.split(".")
            ends = {".".join(words[i:]) for i in range(len(words))} & patterns.keys()
            order = self.order(patterns) if len(ends) > 1 else {}
            if ends:
                alpha = patterns[min(ends, key=lambda end: order.get(end, 0))]
        if alpha is None:
            return None
        if (
            isinstance(alpha, bool)
            or not isinstance(alpha, int | float)
            or not math.isfinite(alpha)
        ):
            raise ValueError(f"its {self.source} has lora_alpha {alpha!r}, not a number")
        return alpha * math.sqrt(rank) if setting("use_rslora") else alpha
