"""The models, LoRAs and other files that clients may choose, by name.

A client never gives a path: what it names is looked up among the files that were found below the
folders of the server's owner.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from pathlib import Path

from ldm.checkpoints.assets import asset_path
from ldm.checkpoints.model_folder import ENDINGS, models
from ldm.checkpoints.source import find_own_ip_adapter
from ldm.config.upscalers import FILE_LABELS, find_built_in
from ldm.server.errors import unknown
from ldm.server.settings import Settings
from ldm.upscaling import list_upscalers

BUILT_IN = "built-in"
LORA_ENDINGS = (".safetensors", ".pt", ".ckpt", ".bin")


class Library:
    """What is in the folders: names and their paths.

    A file's name is its stem, or its path in the folder where two have the same stem.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._lock = threading.Lock()
        self.refresh()

    def refresh(self) -> None:
        """Look into the folders anew."""
        given = self.settings
        found = named(given.model_dir, ENDINGS)
        own: dict[str, str | Path | None] = {BUILT_IN: None}
        if given.model is not None and given.model not in found:
            own[Path(given.model).stem or given.model] = given.model
        with self._lock:
            self.models: dict[str, str | Path | None] = {**own, **found}
            self.loras = named(given.lora_dir, LORA_ENDINGS)
            self.embeddings = named(given.embedding_dir, LORA_ENDINGS)
            self.controlnets = named(given.controlnet_dir, ENDINGS)
            found_upscalers = list_upscalers(given.upscaler_dir)
            self.upscalers: dict[str, str | Path] = {
                one.name: one.name if one.path is None else one.path for one in found_upscalers
            }
        self.first = self._first()

    def _first(self) -> str:
        """Return the name of the model that draws at first."""
        given = self.settings.model
        if given is None:
            return BUILT_IN
        return given if given in self.models else Path(given).stem or given

    def model(self, name: str | None) -> str:
        """Return the listed name of a model; None is the first. Raises UnknownNameError."""
        return self.first if name is None else self.choose("model", self.models, name)

    def upscaler(self, name: str) -> str | Path:
        """Return a built-in upscaler's name, or the path of a listed one. Raises UnknownNameError.

        A built-in one may have any spelling.
        """
        built_in = find_built_in(name)
        if built_in is not None:
            return built_in.name
        file = FILE_LABELS.get(name, name)  # "R-ESRGAN 4x+" is a file of another name
        return self.upscalers[self.choose("upscaler", self.upscalers, file)]

    def has_ip_adapter(self, name: str) -> bool:
        """Whether a listed model comes with an IP-Adapter of its own."""
        path = self.models[name]
        folder = asset_path("weights") if path is None else Path(path)
        return find_own_ip_adapter(folder) is not None

    @staticmethod
    def choose(kind: str, known: Iterable[str], name: str) -> str:
        """Return the listed name that a client means: with or without ending, in any case.

        Raises UnknownNameError.
        """
        for same in ASKED:
            for each in known:
                if same(name) == same(each):
                    return each
        raise unknown(kind, name, [*known])


def stem(name: str) -> str:
    """Return a name without its ending: "style.safetensors" is "style"."""
    for ending in ENDINGS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name


# Ways in which a client's name may equal a listed one, the closest first.
ASKED: tuple[Callable[[str], str], ...] = (str, stem, str.lower, lambda name: stem(name).lower())


def named(folder: Path | None, endings: tuple[str, ...]) -> dict[str, Path]:
    """Return the files below a folder by name."""
    if folder is None or not folder.is_dir():
        return {}
    found: dict[str, Path] = {}
    for path in models(folder, endings):
        short = path.name if path.is_dir() else path.stem
        found[short if short not in found else path.relative_to(folder).as_posix()] = path
    return found
