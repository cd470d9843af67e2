"""One component of a diffusers folder: ``config.json`` and a weight file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Protocol, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ldm.checkpoints.names import to_ours
from ldm.checkpoints.tensors import read_tensors, write_tensors
from ldm.config import Config, write_json
from ldm.errors import CheckpointError

SHOWN = 3  # wrong names or shapes that an error lists before it says how many more there are


class Component(Protocol):
    """A module with a config: the VAE, the text encoder, the U-Net."""

    config_class: type[Config]
    weight_stem: str  # of its file: transformers and diffusers name theirs differently
    config: Config


M = TypeVar("M", bound=nn.Module)


def find_weights(folder: Path, stem: str) -> Path:
    """The weight file in a component's folder: the plain one, else a half-precision variant.

    Raises CheckpointError, with the names tried and the names there.
    """
    names = [f"{stem}.safetensors", f"{stem}.fp16.safetensors", f"{stem}.bin", f"{stem}.fp16.bin"]
    if stem == "model":
        names += ["pytorch_model.bin", "pytorch_model.fp16.bin"]
    for name in names:
        if (folder / name).is_file():
            return folder / name
    there = ", ".join(sorted(path.name for path in folder.glob("*"))) or "nothing"
    raise CheckpointError(
        f"{folder} holds no weights: looked for {', '.join(names)}; found {there}"
    )


class Uninitialised(TorchFunctionMode):
    """Modules built inside skip their initial values, since a file's tensors will replace them.

    On "meta" the initialisers compute nothing, but PyTorch imports its compilers for them: 2 s.
    """

    SKIPPED = frozenset({nn.init.kaiming_uniform_, nn.init.uniform_, nn.init.normal_})

    def __torch_function__(
        self, func: Callable, types: object, args: tuple = (), kwargs: dict | None = None
    ) -> object:
        return None if func in self.SKIPPED else func(*args, **(kwargs or {}))


def load_component(
    module_class: type[M], folder: Path, dtype: torch.dtype, device: torch.device | str = "cpu"
) -> M:
    """Build a module from its folder, in evaluation mode.

    It is built without memory of its own and takes the tensors of the mapped file, so that loading
    copies only what changes its dtype or device. Raises CheckpointError for whatever does not fit.
    """
    if not folder.is_dir():
        raise CheckpointError(f"{folder} does not exist; a model folder needs it")
    config = module_class.config_class.from_file(folder / "config.json")
    with torch.device("meta"), Uninitialised():
        module = module_class(config)
    path = find_weights(folder, module_class.weight_stem)
    expected = module.state_dict()
    tensors = to_ours(read_tensors(path), expected)
    check(expected, tensors, path)
    module.load_state_dict(
        {key: value.to(device, dtype) for key, value in tensors.items()}, assign=True
    )
    return module.requires_grad_(False).eval()


def check(expected: dict[str, Tensor], found: dict[str, Tensor], path: Path) -> None:
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
            more = f" and {len(items) - SHOWN} more" if len(items) > SHOWN else ""
            raise CheckpointError(
                f"{path} {kind} {', '.join(items[:SHOWN])}{more}; "
                "it does not fit the config.json beside it"
            )


def save_component(module: nn.Module, folder: Path, dtype: torch.dtype | None = None) -> None:
    """Write ``config.json`` and safetensors, named as diffusers and transformers read them."""
    folder.mkdir(parents=True, exist_ok=True)
    tensors = {
        key: value.to("cpu", dtype or value.dtype) for key, value in module.state_dict().items()
    }
    write_tensors(tensors, folder / f"{module.weight_stem}.safetensors")
    write_json(folder / "config.json", module.config.to_dict())
