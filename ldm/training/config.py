"""The settings of a training run: a TOML file of ``configs/train/``."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from ldm.config.settings import check_values, choice, read_table, within
from ldm.errors import ArgumentError
from ldm.training.foreign import (
    TOMLDecodeError,
    check_depth,
    check_text,
    check_unicode,
    parse_toml,
    read_file,
    scalars,
)
from ldm.training.optimizer_options import read_options

MOST_BYTES = 1 << 20  # of a config, and of an override
MOST_ROWS = 1 << 20  # of a batch
MOST_TABLES = 16  # in each other, in an override's key

# What may change when a run goes on; anything else would make it another run.
CHANGEABLE = frozenset({
    "output", "steps", "learning_rate", "learning_rates", "schedule", "warmup", "decay_from",
    "weight_decay", "max_grad_norm", "checkpoint_minutes", "sample_every", "log_every", "trackers",
    "gradient_accumulation_steps", "compile",
})  # fmt: skip


@dataclass
class TrainConfig:
    """Settings of a run. Raises ArgumentError for values that cannot work."""

    recipe: str  # a name of ldm/training/recipes
    data: str  # folder of the data set
    output: str  # folder of the run: checkpoints, samples, metrics and the model
    steps: int = within("[1, inf)")  # optimizer steps in all
    batch_size: int = within("[1, inf)")  # examples a step, over all processes
    learning_rate: float = within("(0, inf)")  # the peak
    # Of parts of the model that have another, by their names: {unet = 1e-4, text_encoder = 5e-6}.
    learning_rates: dict[str, Any] = field(default_factory=dict)
    optimizer: str = choice("adamw", "muon", "adamw8bit", "adafactor", "prodigy")
    optimizer_options: dict[str, Any] = field(default_factory=dict)  # see optimizer_options.py
    schedule: str = choice("linear", "cosine", "constant")  # how the rate falls
    warmup: int = within("[0, inf)", 100)  # steps of linear rise
    decay_from: float = within("[0, 1]", 0.6)  # part of the steps before the rate falls, to 0
    weight_decay: float = within("[0, inf)", 0.01)
    betas: tuple[float, float] = within("[0, 1)", (0.9, 0.99))  # of AdamW, Prodigy
    max_grad_norm: float = within("(0, inf]", 1.0)
    ema_decay: float = within("[0, 1)", 0.999)  # reached by (1 + step) / (10 + step); 0: no average
    mixed_precision: str = choice("bf16", "fp16", "no")  # "no" for float32
    compile: bool = False  # the network by torch.compile: minutes at first; gains on CUDA only
    gradient_accumulation_steps: int = within("[1, inf)", 1)  # parts of a batch, to save memory
    seed: int = within("[0, 9223372036854775808)", 0)
    start: str = (
        ""  # folder of a trained network to begin with, of the same kind: see warm_start.py
    )
    checkpoint_minutes: float = within("[0, inf)", 5.0)
    sample_every: int = within("[1, inf)", 500)  # steps
    log_every: int = within("[1, inf)", 20)  # steps
    trackers: tuple[str, ...] = ()  # of accelerate: "tensorboard", "wandb", …
    model: dict[str, Any] = field(default_factory=dict)  # as in the module's config.json
    options: dict[str, Any] = field(default_factory=dict)  # the recipe's own settings

    def __post_init__(self) -> None:
        check_values(self)
        for table in ("model", "options", "optimizer_options", "learning_rates"):
            check_content(table, getattr(self, table))
        read_options(self.optimizer, self.optimizer_options)
        check_rates(self.learning_rates)
        if self.batch_size > MOST_ROWS:
            raise ArgumentError(
                f"batch_size is {self.batch_size!s:.40}; at most {MOST_ROWS:,} work"
            )
        for name, value in vars(self).items():
            if type(value) is int and value >= 2**63:
                raise ArgumentError(f"{name} is {value!s:.40}; it must fit into 64 bits")

    def learning_rate_at(self, step: int, peak: float | None = None) -> float:
        """Linear warm-up, a plateau, and a fall to zero at the last step.

        peak: of a part, in place of ``learning_rate``. The fall is linear, or half a wave of a
        cosine (Loshchilov & Hutter 2017, eq. 5); schedule "constant" has none.
        """
        rise = (step + 1) / max(self.warmup, 1)
        fall = (self.steps - step) / max(self.steps * (1 - self.decay_from), 1)
        if self.schedule == "cosine":
            fall = (1 - math.cos(math.pi * min(1.0, fall))) / 2
        factor = min(1.0, rise) if self.schedule == "constant" else min(1.0, rise, fall)
        return (self.learning_rate if peak is None else peak) * factor


def check_rates(rates: dict[str, Any]) -> None:
    """Raise ArgumentError for learning rates of parts that are no positive numbers."""
    for name, rate in rates.items():
        if type(rate) not in (int, float) or not 0 < rate < math.inf:
            raise ArgumentError(
                f"learning_rates.{name} is {rate!r:.60}; expected a number above 0. What shall not "
                "be trained is left out of the recipe's parts"
            )


def read_config(path: str | Path, overrides: list[str] | None = None) -> TrainConfig:
    """Read a TOML file, then ``key=value`` overrides (values in TOML, tables by dots).

    Raises ArgumentError for a file that is missing, not TOML or larger than ``MOST_BYTES``, for
    unknown keys (with the nearest known one), missing ones, and values of a wrong type or out of
    range; see ``parse_toml`` for what else is refused.
    """
    try:
        values = parse_toml(read_file(Path(path), MOST_BYTES).decode("utf-8"))
    except FileNotFoundError:
        raise ArgumentError(
            f"{path} does not exist; configs/train/ has those that made the built-in model"
        ) from None
    except (OSError, ValueError) as error:
        raise ArgumentError(f"{path} cannot be read as TOML ({error})") from None
    for override in overrides or []:
        _override(values, override)
    try:
        return read_table(TrainConfig, values)
    except ArgumentError as error:
        raise ArgumentError(f"{path}: {error}") from None


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ArgumentError(f"{override!r:.200} is not of the form key=value")
    if len(override) > MOST_BYTES:
        raise ArgumentError(f"{override!r:.60} has more than {MOST_BYTES:,} characters")
    *tables, last = key.strip().split(".", MOST_TABLES + 1)
    if len(tables) > MOST_TABLES:
        raise ArgumentError(f"{override!r:.200} names more than {MOST_TABLES} tables")
    value = value_of(override, text)
    for table in tables:
        values = values.setdefault(table, {})
        if not isinstance(values, dict):
            raise ArgumentError(f"{override!r:.200}: {table} is no table, so it has no {last}")
    values[last] = value


def value_of(override: str, text: str) -> Any:
    """Read a value in TOML; a bare word is a string. Raises ArgumentError for one to refuse."""
    try:
        found = parse_toml(f"value = {text}")
    except TOMLDecodeError:
        try:
            check_text(text)
        except ValueError as error:
            raise ArgumentError(f"{override!r:.200}: {error}") from None
        return text
    except ValueError as error:
        raise ArgumentError(f"{override!r:.200}: {error}") from None
    if len(found) > 1:
        raise ArgumentError(f"{override!r:.200} has several lines; give --set for each setting")
    return found["value"]


def check_content(name: str, values: Any) -> None:
    """Raise ArgumentError for a table that ``config.json`` cannot hold."""
    try:
        check_depth(values)
        check_unicode(values)
    except ValueError as error:
        raise ArgumentError(f"{name}: {error}") from None
    for one in scalars(values):
        if not isinstance(one, str | int | float | tuple | None):
            raise ArgumentError(
                f"{name} holds a {type(one).__name__}, {one!r:.60}; expected strings, numbers, "
                "true or false, lists and tables"
            )


def differences(old: dict[str, Any], new: dict[str, Any], table: str = "") -> dict[str, str]:
    """Return the settings that two configs do not share, and how: {"seed": "0, now 1"}."""
    found: dict[str, str] = {}
    for key in sorted(old.keys() | new.keys()):
        before, after = (values.get(key, "not there") for values in (old, new))
        if isinstance(before, dict) and isinstance(after, dict):
            found |= differences(before, after, f"{table}{key}.")
        elif before != after:
            found[table + key] = f"{shown(before)}, now {shown(after)}"
    return found


def shown(value: object) -> str:
    """Return a value for a message, cut where it is long."""
    text = str(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


def check_resumable(
    old: dict[str, Any], config: TrainConfig, accept_changes: bool = False
) -> dict[str, str]:
    """Compare a run's ``config.json`` with the settings it is to go on with.

    Returns what differs and may: with ``accept_changes``, all. Raises ArgumentError naming every
    other key that differs.
    """
    defaults = {f.name: f.default for f in fields(TrainConfig) if f.name not in old}
    new = as_json(config)
    found = differences({k: new[k] for k in defaults} | old, new)
    fixed = {key: how for key, how in found.items() if key.partition(".")[0] not in CHANGEABLE}
    if fixed and not accept_changes:
        settings = "; ".join(f"{key} was {how}" for key, how in fixed.items())
        raise ArgumentError(
            f"{config.output} holds a run with other settings: {settings}. Give the old ones, "
            "another output for a new run, or --accept-changes to go on with the new ones"
        )
    return found


def as_json(config: TrainConfig) -> dict[str, Any]:
    """Return the settings as ``config.json`` holds them: lists where there are tuples."""
    values = asdict(config)
    return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}
