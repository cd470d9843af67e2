"""The base of all configurations: dataclasses read from and written as a diffusers folder's JSON.

A key that we do not implement is accepted only at the value that switches it off (``NEUTRAL``);
any other value would change the picture, so it is an error that names the key.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from ldm.config.checking import fits, inside, listed, scalars, shown
from ldm.config.json import read_json
from ldm.errors import CheckpointError

C = TypeVar("C", bound="Config")
T = TypeVar("T")
# Larger whole numbers would take all memory, and no key means anything by ∞ or NaN.
INTERVALS = {int: f"[0, {1 << 20}]", float: "(-inf, inf)"}
# The whole numbers that may be 0; no width or number of heads may.
MAY_BE_ZERO = frozenset(
    {
        "steps_offset",
        "downsample_padding",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "num_encoder_blocks",
        "num_decoder_blocks",
        "num_trans_layer",
        "num_layers",
        "eos_token_id",
        "projection_dim",
    }
)
# Of numbers of layers, and of lists with one value for each level.
DEPTH = "[1, 100]"
LEVELS = "[1, 16]"  # each halves the resolution
DEPTHS = frozenset(
    {
        "layers_per_block",
        "transformer_layers_per_block",
        "reverse_transformer_layers_per_block",
        "num_hidden_layers",
        "block_out_channels",
        "num_encoder_blocks",
        "num_decoder_blocks",
    }
)


@dataclass(frozen=True)
class Config:
    """Base: ``from_dict`` / ``from_file`` read diffusers' JSON, ``to_dict`` writes it."""

    # Keys that cannot change what the module computes.
    IGNORED: ClassVar[frozenset[str]] = frozenset()
    # Keys that we do not implement, with the values that switch them off.
    NEUTRAL: ClassVar[dict[str, tuple[Any, ...]]] = {}
    # Written beside the fields, for diffusers and transformers.
    EXTRA: ClassVar[dict[str, Any]] = {}

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any], source: str = "config") -> C:
        """Read a JSON object. Raises CheckpointError for a key that we cannot honour."""
        hints = get_type_hints(cls)
        known = {field.name: hints[field.name] for field in fields(cls)}
        kept: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                if not is_supported(key, value, known[key]):
                    raise CheckpointError(
                        f"{source}: {key} is {shown(value)}, which is not supported"
                    )
                kept[key] = frozen(value)
            elif not key.startswith("_") and key not in cls.IGNORED:
                neutral = cls.NEUTRAL.get(key, (None, False))
                if value not in neutral:
                    raise CheckpointError(
                        f"{source}: {key} is {shown(value)}, which is not supported; "
                        f"only {' or '.join(map(repr, neutral))} works"
                    )
        try:
            found = cls(**kept)
            check_above_zero({key: kept[key] for key in kept if int in scalars(known[key])})
            return found
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        except (TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{source}: a value has the wrong type ({error})") from error

    @classmethod
    def from_file(cls: type[C], path: str | Path) -> C:
        """Read a ``config.json``. Raises CheckpointError as ``read_json`` and ``from_dict`` do."""
        return cls.from_dict(read_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that diffusers (or transformers) reads back."""
        return {**self.EXTRA, **asdict(self)}


def frozen(value: Any) -> Any:
    """Return a value of a JSON file with tuples in place of lists."""
    return tuple(map(frozen, value)) if isinstance(value, list | tuple) else value


def is_supported(key: str, value: Any, hint: Any) -> bool:
    """Whether a value of a JSON file could be that of a field: its type, and a sensible size."""
    interval = next((INTERVALS[kind] for kind in scalars(hint) if kind in INTERVALS), None)
    if not fits(value, hint) or (interval and not inside(value, interval)):
        return False
    if key not in DEPTHS or value is None:
        return True
    most = LEVELS if key == "block_out_channels" else DEPTH
    return inside(value if isinstance(value, int) else len(value), most)


def check_above_zero(numbers: dict[str, Any]) -> None:
    """Raise CheckpointError for whole numbers that are, or hold, a 0 which means nothing."""
    for key, value in numbers.items():
        each = value if isinstance(value, tuple) else (value,)
        if key not in MAY_BE_ZERO and any(one == 0 and one is not False for one in each):
            raise CheckpointError(f"{key} is {shown(value)}; expected 1 or more")


def per_level(value: int | tuple[T, ...], levels: int, name: str) -> tuple[int | T, ...]:
    """Return one value per resolution level; a single one is repeated.

    Raises CheckpointError for a list of another length.
    """
    values = value if isinstance(value, tuple) else (value,) * levels
    if len(values) != levels:
        raise CheckpointError(
            f"{name} has {len(values)} values for {levels} levels of block_out_channels"
        )
    return values


def check_groups(channels: tuple[int, ...], groups: int, name: str = "norm_num_groups") -> None:
    """Raise CheckpointError for channel counts that group normalisation cannot divide."""
    for count in channels:
        if groups < 1 or count < 1 or count % groups:
            raise CheckpointError(
                f"block_out_channels holds {count}, which {name} {groups} does not divide"
            )


def check_choice(name: str, value: object, choices: Collection[str | None]) -> None:
    """Raise CheckpointError unless a value is one of the choices."""
    if value not in choices:
        raise CheckpointError(f"{name} is {shown(value)}; expected {listed(choices)}")
