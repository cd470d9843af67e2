"""One component of a diffusers folder: ``config.json`` and a weight file."""

from __future__ import annotations

import typing
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from ldm.checkpoints.cast import cast
from ldm.checkpoints.deferred import Stored, dense, dtype_to_keep
from ldm.checkpoints.names import to_ours
from ldm.checkpoints.plain import check_finite, check_real
from ldm.checkpoints.scaled_fp8 import is_scale
from ldm.checkpoints.tensors import read_checkpoint, to_save, write_tensors
from ldm.config import Config, read_json, write_json
from ldm.config.checking import shown
from ldm.config.files import is_file
from ldm.errors import CheckpointError, LDMError

MOST_NAMED = 3  # wrong names or shapes that an error lists; of further ones it gives the number


class Component(Protocol):
    """A module with a config: the VAE, the text encoder, the U-Net."""

    config_class: type[Config]
    weight_stem: str  # of its file: transformers and diffusers name theirs differently
    config: Config


M = TypeVar("M", bound=nn.Module)


def find_weights(folder: Path, stem: str, variant: str | None = None) -> Path:
    """Find the weight file in a component's folder, or the index of its shards.

    Safetensors come first. ``variant`` "fp16" prefers files named so; otherwise the plain ones come
    first, and half precision is used if there is nothing else. Warns if the variant is missing.
    Raises CheckpointError, with the names that were tried and those that exist.
    """
    stems = [stem, "pytorch_model"] if stem == "model" else [stem]
    half = variant or "fp16"
    names = []
    for end in ("safetensors", "bin"):
        for each in stems if end == "bin" else stems[:1]:
            plain = [f"{each}.{end}", f"{each}.{end}.index.json"]
            # Several spellings of a variant's index have been in use.
            special = [
                f"{each}.{half}.{end}",
                f"{each}.{end}.index.{half}.json",
                f"{each}.{half}.{end}.index.json",
                f"{each}.{end}.{half}.index.json",
            ]
            names.append(special + plain if variant else plain + special)
    for name in (name for group in names for name in group):
        if (folder / name).is_file():
            if variant and f".{variant}." not in name:
                warnings.warn(
                    f"{folder} has no weights of the variant {variant!r}: {name} is taken",
                    stacklevel=2,
                )
            return folder / name
    tried = ", ".join(name for group in names for name in group[:2])
    there = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
    raise CheckpointError(f"{folder} holds no weights: looked for {tried}, …; found {there}")


def read_weights(path: Path) -> dict[str, Stored]:
    """Read the tensors of a weight file, or of all shards that an index names.

    Raises CheckpointError for what is broken or missing, and for an index that points elsewhere.
    """
    if path.suffix != ".json":
        return read_checkpoint(path).tensors
    places = read_json(path).get("weight_map")
    if not isinstance(places, dict) or not places:
        raise CheckpointError(f"{path} has no weight_map; get the model again")
    tensors: dict[str, Stored] = {}
    for name in sorted(set(map(str, places.values()))):
        if not name or Path(name).name != name:
            raise CheckpointError(
                f"{path} names {shown(name)}, outside its folder; it is not trusted"
            )
        if not is_file(path.with_name(name)):
            raise CheckpointError(
                f"{path} names {shown(name)}, which is missing; get the model again"
            )
        tensors |= read_checkpoint(path.with_name(name)).tensors
    missing = sorted(name for name in set(places) - set(tensors) if not is_scale(name))
    if missing:
        raise CheckpointError(
            f"{path} lists {shown(missing[0])} and {len(missing) - 1} more tensors that its "
            "shards lack; get the model again"
        )
    return tensors


class Uninitialised(TorchFunctionMode):
    """A context in which modules skip their initial values, as a file's tensors will replace them.

    On "meta" the initialisers compute nothing, but PyTorch imports its compilers for them: 2 s.
    """

    SKIPPED = frozenset({nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_})

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return None if func in self.SKIPPED else func(*args, **(kwargs or {}))


def load_component(
    module_class: type[M],
    folder: Path,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    variant: str | None = None,
    finite: bool = False,
) -> M:
    """Build a module from its folder, in evaluation mode; finite: as of ``fill``.

    Raises CheckpointError for whatever does not fit.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; a model folder needs it")
    component = typing.cast("type[Component]", module_class)  # Python's types cannot express both
    module = empty(module_class, component.config_class.from_file(folder / "config.json"))
    path = find_weights(folder, component.weight_stem, variant)
    fill(module, to_ours(read_weights(path), module.state_dict()), path, dtype, device, finite)
    return module


def empty(module_class: type[M], config: Config) -> M:
    """Make a module whose tensors have shapes, but neither memory nor values yet."""
    try:
        with torch.device("meta"), Uninitialised():
            return module_class(config)
    except LDMError:
        raise
    except (RuntimeError, ArithmeticError, ValueError) as error:  # too large for 64 bits, or of 0
        raise CheckpointError(
            f"no {module_class.__name__} has sizes as {str(config)[:200]} "
            f"({str(error).splitlines()[0]}); get it again"
        ) from None


def fill(
    module: nn.Module,
    tensors: dict[str, Stored],
    path: Path,
    dtype: torch.dtype | None,
    device: torch.device | str = "cpu",
    finite: bool = False,
) -> None:
    """Give an ``empty`` module its tensors, and put it in evaluation mode.

    dtype: None keeps the file's, or what ``dtype_to_keep`` chooses for float8 and for blocks.
    finite: whether to look at all values, which is for small modules: see ``plain``.

    Tensors of a mapped file are used as they are, so that loading copies only what changes its
    dtype or device, and are removed from ``tensors``, so that the file's memory is freed meanwhile.
    Raises CheckpointError, naming ``path``, unless names and shapes are the module's, and the
    tensors of real numbers.
    """
    check_tensors(module.state_dict(), tensors, path)
    for key, stored in tensors.items():
        check_real(path, key, stored)
    dtype = dtype or dtype_to_keep(tensors.values())
    modules = dict(module.named_modules())
    for key in list(tensors):  # which load_state_dict takes three times as long for
        owner, _, name = key.rpartition(".")
        value = cast(dense(tensors.pop(key)).to(device), dtype)
        if finite:
            check_finite(path, key, value)
        modules[owner].register_parameter(name, nn.Parameter(value, requires_grad=False))
    module.eval()


def check_tensors(expected: Mapping[str, Stored], found: Mapping[str, Stored], path: Path) -> None:
    """Raise CheckpointError unless both have the same names and shapes."""
    missing = [key for key in expected if key not in found]
    unexpected = [key for key in found if key not in expected]
    shapes = [
        f"{key} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
        for key in expected
        if key in found and found[key].shape != expected[key].shape
    ]
    for kind, items in (
        ("lacks", missing),
        ("has unknown", unexpected),
        ("has other shapes:", shapes),
    ):
        if items:
            more = f" and {len(items) - MOST_NAMED} more" if len(items) > MOST_NAMED else ""
            raise CheckpointError(
                f"{path} {kind} {', '.join(items[:MOST_NAMED])}{more}; "
                "it does not fit the config.json beside it"
            )


def save_component(module: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and safetensors, named as diffusers and transformers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = to_save(module.state_dict(), dtype)
    component = typing.cast("Component", module)
    write_tensors(tensors, folder / f"{component.weight_stem}.safetensors")
    write_json(folder / "config.json", component.config.to_dict())
