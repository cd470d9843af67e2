"""The base of all configurations: dataclasses read from and written as a diffusers folder's JSON.

A key that we do not implement is accepted only at the value that switches it off (``NEUTRAL``);
any other value would change the picture, so it is an error that names the key.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from ldm.config.json import read_json
from ldm.errors import CheckpointError

C = TypeVar("C", bound="Config")
SCALARS = {"int": int, "float": (int, float), "bool": bool, "str": str, "None": type(None)}
LARGEST = 1 << 20  # of a number in a config: larger ones would take all memory
DEEPEST = 100  # of a number of layers or levels
DEPTHS = frozenset(
    "layers_per_block transformer_layers_per_block num_hidden_layers block_out_channels".split()
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
        known = {field.name: field.type for field in fields(cls)}
        kept: dict[str, Any] = {}
        for key, value in values.items():
            if key in known:
                if not (fits(value, known[key]) and (key not in DEPTHS or shallow(value))):
                    raise CheckpointError(f"{source}: {key} is {value!r}, which is not supported")
                kept[key] = tuple(value) if isinstance(value, list) else value
            elif not key.startswith("_") and key not in cls.IGNORED:
                neutral = cls.NEUTRAL.get(key, (None, False))
                if value not in neutral:
                    raise CheckpointError(
                        f"{source}: {key} is {value!r}, which is not supported; "
                        f"only {' or '.join(map(repr, neutral))} works"
                    )
        try:
            return cls(**kept)
        except CheckpointError as error:
            raise CheckpointError(f"{source}: {error}") from None
        except (TypeError, ZeroDivisionError) as error:
            raise CheckpointError(f"{source}: a value has the wrong type ({error})") from error

    @classmethod
    def from_file(cls: type[C], path: str | Path) -> C:
        """Read a ``config.json``. Raises CheckpointError as ``read_json`` and ``from_dict`` do."""
        return cls.from_dict(read_json(path), source=str(path))

    def to_dict(self) -> dict[str, Any]:
        """The JSON object that diffusers (or transformers) reads back."""
        return {**self.EXTRA, **asdict(self)}


def fits(value: object, annotation: str) -> bool:
    """Whether a JSON value is of a field's type, such as "int | tuple[int, ...] | None".

    Numbers must be finite, in [0, LARGEST] where they are whole.
    """
    for kind in annotation.split(" | "):
        if kind.startswith("tuple["):
            inner = kind.removeprefix("tuple[").split(",")[0]
            if isinstance(value, list | tuple) and all(fits(item, inner) for item in value):
                return True
        elif isinstance(value, SCALARS[kind]) and isinstance(value, bool) == (kind == "bool"):
            return (
                not isinstance(value, int | float)
                or (kind == "int" and 0 <= value <= LARGEST)
                or (kind != "int" and math.isfinite(value))
            )
    return False


def shallow(value: int | tuple[int, ...] | list[int]) -> bool:
    """Whether numbers of layers, or a list with one value for each level, could be a network's."""
    if isinstance(value, int):
        return 1 <= value <= DEEPEST
    return 1 <= len(value) <= DEEPEST


def per_level(value: int | tuple[int, ...], levels: int, name: str) -> tuple[int, ...]:
    """One value per resolution level: a single one is repeated, else there must be one for each."""
    values = (value,) * levels if isinstance(value, int) else tuple(value)
    if len(values) != levels:
        raise CheckpointError(
            f"{name} has {len(values)} values for {levels} levels of block_out_channels"
        )
    return values


def check_groups(channels: tuple[int, ...], groups: int, name: str = "norm_num_groups") -> None:
    """Group normalisation needs channel counts that its groups divide."""
    for count in channels:
        if groups < 1 or count < 1 or count % groups:
            raise CheckpointError(
                f"block_out_channels holds {count}, which {name} {groups} does not divide"
            )


def check_choice(name: str, value: object, choices: str, none: bool = False) -> None:
    """Raise CheckpointError unless a value is one of the words, or None where that is one."""
    if value not in choices.split() and not (none and value is None):
        words = " or ".join(map(repr, choices.split()))
        raise CheckpointError(f"{name} is {value!r}; expected {words}{' or none' * none}")
