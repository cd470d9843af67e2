"""The table ``[optimizer_options]``: what each optimizer has beside rates, betas and decay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ldm.config.settings import read_table, within
from ldm.errors import ArgumentError


@dataclass
class AdamWOptions:
    """Of AdamW (Loshchilov & Hutter 2019), with moments of 32 bits or of 8."""

    eps: float = within("(0, 1]", 1e-8)


@dataclass
class MuonOptions:
    """Of Muon (Jordan et al. 2024)."""

    momentum: float = within("[0, 1)", 0.95)
    eps: float = within("(0, 1]", 1e-8)  # of AdamW's part


@dataclass
class AdafactorOptions:
    """Of Adafactor (Shazeer & Stern 2018): the defaults are a rate that the schedule sets."""

    # Whether a weight moves in proportion to its own size, the paper's α of algorithm 4.
    scale_parameter: bool = False
    # Whether the rate is min(0.01, 1/√step) (section 8) times ``learning_rate``, then usually 1.
    relative_step: bool = False
    warmup_init: bool = False  # with relative_step: it rises as 1e-6 · step first
    clip_threshold: float = within("(0, inf]", 1.0)  # largest root mean square of an update
    decay_rate: float = within("[-1, 0)", -0.8)  # β₂ of a step t is 1 − t^decay_rate
    beta1: float | None = within("[0, 1)", None)  # of a first moment; None keeps none
    eps: tuple[float, float] = within("[0, 1]", (1e-30, 1e-3))  # of squares; of the weight's size

    def __post_init__(self) -> None:
        if self.warmup_init and not self.relative_step:
            raise ArgumentError(
                "optimizer_options.warmup_init is the start of relative steps; set "
                "optimizer_options.relative_step = true, too, or leave both out and set warmup"
            )


@dataclass
class ProdigyOptions:
    """Of Prodigy (Mishchenko & Defazio 2023), which finds the rate; names as in ``prodigyopt``."""

    beta3: float | None = within("[0, 1)", None)  # of the estimate; None: √β₂
    eps: float = within("(0, 1]", 1e-8)
    use_bias_correction: bool = False
    safeguard_warmup: bool = False
    d0: float = within("(0, 1]", 1e-6)  # the first estimate
    d_coef: float = within("(0, inf)", 1.0)  # multiplies the estimate
    growth_rate: float = within("[1, inf]", float("inf"))  # of the estimate, in a step
    slice_p: int = within("[1, inf)", 1)  # the estimate reads one value of so many


OPTIONS: dict[str, type] = {
    "adamw": AdamWOptions,
    "adamw8bit": AdamWOptions,
    "muon": MuonOptions,
    "adafactor": AdafactorOptions,
    "prodigy": ProdigyOptions,
}


def read_options(optimizer: str, values: dict[str, Any]) -> dict[str, Any]:
    """Return all options of an optimizer. Raises ArgumentError for unknown and wrong ones."""
    return dict(vars(read_table(OPTIONS[optimizer], values, "optimizer_options.")))
