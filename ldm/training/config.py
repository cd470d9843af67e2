"""What a training run is told: a TOML file of ``configs/train/``."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.errors import ArgumentError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@dataclass
class TrainConfig:
    """Settings of a run. Raises ArgumentError for values that cannot work."""

    recipe: str  # "autoencoder", "text" or "latent"
    data: str  # folder of the data set
    output: str  # folder of the run: checkpoints, samples, metrics and the model
    steps: int  # optimizer steps in all
    batch_size: int  # examples a step, over all processes
    learning_rate: float  # the peak
    optimizer: str = "adamw"  # or "muon"
    warmup: int = 100  # steps of linear rise
    decay_from: float = 0.6  # fraction of the steps after which the rate falls linearly to 0
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.99)  # of AdamW
    max_grad_norm: float = 1.0
    ema_decay: float = 0.999  # reached by (1 + step) / (10 + step) from below
    mixed_precision: str = "bf16"  # "no" for float32
    seed: int = 0
    checkpoint_minutes: float = 5.0
    sample_every: int = 500  # steps
    log_every: int = 20  # steps
    model: dict[str, Any] = field(default_factory=dict)  # as in the module's config.json
    options: dict[str, Any] = field(default_factory=dict)  # the recipe's own settings

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "sample_every", "log_every"):
            if getattr(self, name) < 1:
                raise ArgumentError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.optimizer not in ("adamw", "muon"):
            raise ArgumentError(f"optimizer is {self.optimizer!r}; expected 'adamw' or 'muon'")
        if self.mixed_precision not in ("no", "bf16"):
            raise ArgumentError(
                f"mixed_precision is {self.mixed_precision!r}; expected 'bf16' or 'no'"
            )

    def learning_rate_at(self, step: int) -> float:
        """Linear warm-up, a plateau, and a linear fall to zero at the last step."""
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.steps * (1 - self.decay_from), 1)
        return self.learning_rate * min(1.0, rise, fall)


def read_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a TOML file, then ``key=value`` overrides (values in TOML, tables by dots).

    Raises ArgumentError for a file that is missing or not TOML, and for unknown keys.
    """
    try:
        values = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ArgumentError(
            f"{path} does not exist; configs/train/ has those that made the built-in model"
        ) from None
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ArgumentError(f"{path} cannot be read as TOML ({error})") from None
    for override in overrides or []:
        _override(values, override)
    unknown = sorted(set(values) - {f.name for f in fields(TrainConfig)})
    if unknown:
        raise ArgumentError(f"{path}: unknown settings {', '.join(unknown)}")
    try:
        return TrainConfig(**values)
    except TypeError as error:
        raise ArgumentError(f"{path}: {error}") from None


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ArgumentError(f"{override!r} is not of the form key=value")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *tables, last = key.strip().split(".")
    for table in tables:
        values = values.setdefault(table, {})
    values[last] = value
