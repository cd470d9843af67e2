"""PyTorch's pickles (.ckpt, .pt, .bin), whose code is never run.

A pickle may name any function to call. Only those that PyTorch needs for tensors are called;
training checkpoints also hold records of PyTorch Lightning and NumPy, each of which becomes an
``Inert``, and embeddings a ``ParameterDict``, of which ``StoredParameters`` keeps the tensors.
"""

from __future__ import annotations

import pickle
import re
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import torch
from torch.serialization import safe_globals

anything = ContextVar("anything", default=False)  # see ``weights_alone``


class Inert:
    """A placeholder for what a pickle names and nobody needs: takes any arguments, does nothing."""

    def __new__(cls, *args: object, **kwargs: object) -> Inert:
        """Take the arguments that the pickle names."""
        return super().__new__(cls)

    def __init__(self, *args: object, **kwargs: object) -> None:
        """Ignore them."""

    def __setstate__(self, state: object) -> None:
        """Ignore the state, too."""


class StoredParameters(dict[str, object]):
    """A placeholder for a ``torch.nn.ParameterDict``: its parameters by name, nothing of a module.

    The first programs for textual inversion save their vectors in one.
    """

    def __setstate__(self, state: object) -> None:
        """Take the parameters out of a module's attributes."""
        parameters = state.get("_parameters") if isinstance(state, dict) else None
        if isinstance(parameters, dict):
            self.update(parameters)


# What is read as another class than the one named, instead of being refused.
STAND_INS: list[Any] = [(StoredParameters, "torch.nn.modules.container.ParameterDict")]


@contextmanager
def weights_alone() -> Iterator[None]:
    """Allow pickles that would run code inside: their tensors are read, what they name is not."""
    token = anything.set(True)
    try:
        yield
    finally:
        anything.reset(token)


def read_pickle(path: Path) -> object:
    """Read a pickle; tensors are mapped if it is a zip file, as since PyTorch 1.6.

    Raises CheckpointError for one that would run code, and errors of all kinds for a damaged one.
    """
    mmap = zipfile.is_zipfile(path)
    if mmap:
        with zipfile.ZipFile(path) as archive:
            if any(item.compress_type for item in archive.infolist()):
                raise ValueError("it has compressed members, which PyTorch never writes")
    misnamed = path.suffix == ".safetensors"  # by which alone PyTorch would choose its reader
    mmap = mmap and not misnamed
    replaced: list[str] = []
    while True:
        try:
            known = [*STAND_INS, *((Inert, name) for name in replaced)]
            with safe_globals(known), path.open("rb") as file:
                source = file if misnamed else path
                return torch.load(source, map_location="cpu", weights_only=True, mmap=mmap)
        except pickle.UnpicklingError as error:
            from ldm.checkpoints.pickle_header import RECORDS, refusal

            # PyTorch names the first thing that it does not know.
            found = re.search(r"GLOBAL (\S+)( whose module)?", str(error))
            if not found:
                raise ValueError("it is damaged, or no pickle of tensors") from None
            name, blocked = found.groups()
            name = name if "." in name else f"builtins.{name}"
            again = name in replaced
            if not (blocked or again) and (anything.get() or name.startswith(RECORDS)):
                replaced.append(name)
                continue
            raise refusal(path, name, again) from None
