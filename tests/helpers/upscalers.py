"""Small random models that enlarge pictures, and spandrel to read them."""

from __future__ import annotations

import importlib.util
import re
import sys
import types
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

FUNCTIONAL = "torchvision.transforms.functional"
# The names that spandrel imports from there: for LaMa and RestoreFormer, which no test uses.
UNUSED = ("InterpolationMode", "rotate", "normalize")


def spandrel() -> Any:
    """Import spandrel, beside a torchvision that does not fit this PyTorch or without one, too.

    PyPI's torchvision does not import beside a PyTorch for CPUs. spandrel calls three names of it
    in two networks; for the time of the import, a module that has only these stands in its place.
    Skips the test where spandrel is not installed.
    """
    if importlib.util.find_spec("spandrel") is None:
        pytest.skip("needs spandrel: pip install --no-deps spandrel")
    if "spandrel" in sys.modules:
        return sys.modules["spandrel"]
    with pytest.MonkeyPatch.context() as patch:
        try:
            import torchvision.transforms.functional  # noqa: F401
        except Exception:
            for name in ("torchvision", "torchvision.transforms", FUNCTIONAL):
                patch.setitem(sys.modules, name, types.ModuleType(name))
            for name in UNUSED:
                setattr(sys.modules[FUNCTIONAL], name, None)
        import spandrel
    return spandrel


def esrgan(scale: int = 2, channels: int = 3, seed: int = 0) -> dict[str, Tensor]:
    """A tiny ESRGAN's tensors by the old names (``model.0.weight``), whose picture varies."""
    spandrel()
    from spandrel.architectures.ESRGAN import ESRGAN

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ESRGAN(in_nc=channels, out_nc=channels, num_filters=8, num_blocks=1, scale=scale)
    return network.state_dict()


def new_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of an ESRGAN of 4x, 1 block, by Real-ESRGAN's names (``conv_first.weight``)."""
    layers = {"0": "conv_first", "1.sub.1": "conv_body", "3": "conv_up1", "6": "conv_up2"}
    layers |= {"8": "conv_hr", "10": "conv_last"}
    found = {}
    for name, value in state.items():
        layer, _, kind = name.removeprefix("model.").rpartition(".")
        block = re.fullmatch(r"1\.sub\.(\d+)\.RDB(\d)\.conv(\d)\.0", layer)
        new = "body.{}.rdb{}.conv{}".format(*block.groups()) if block else layers[layer]
        found[f"{new}.{kind}"] = value
    return found


def write_upscaler(path: Path, scale: int = 2, channels: int = 3, seed: int = 0) -> Path:
    """Write a tiny ESRGAN as ``esrgan``: a .safetensors file, or any other as a pickle."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = esrgan(scale, channels, seed)
    if path.suffix == ".safetensors":
        save_file(state, path)
    else:
        torch.save(state, path)
    return path
