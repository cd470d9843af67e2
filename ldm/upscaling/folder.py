"""Upscalers by name: the built-in ones, and the models in a folder."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ldm.checkpoints.model_folder import models
from ldm.config.upscalers import (
    BUILT_IN,
    ENDINGS,
    FILE_LABELS,
    BuiltIn,
    find_built_in,
)
from ldm.errors import ArgumentError, did_you_mean

# Folders of upscalers within a folder of models, without case: A1111's, its kin's and ComfyUI's.
FOLDERS = (
    *("esrgan", "realesrgan", "bsrgan", "swinir", "scunet", "dat", "hat"),
    *("upscale_models", "upscalers"),
)
SCALES = re.compile(
    r"^([1-8])-?x|(?<![a-z\d])(?:x-?([1-8])(?=plus|v\d|[^a-z\d]|$)|([1-8])x(?![a-z\d]))"
)


@dataclass(frozen=True)
class UpscalerInfo:
    """What is known of an upscaler without reading it.

    Attributes:
        name: to give to ``load_upscaler``; as A1111 shows it.
        scale: of a model, if its file's name says it ("4x-…", "…_x2"); None is any, or unknown.
        path: of a model; None for a built-in one.
        latent: whether it enlarges latents, which only the second pass of ``hires_fix`` has.
    """

    name: str
    scale: int | None = None
    path: Path | None = None
    latent: bool = False


def list_upscalers(folder: Path | None = None) -> list[UpscalerInfo]:
    """Return the built-in upscalers, and the models in a folder of models, by name.

    A model is a file in one of the folder's ``FOLDERS``, or below it; in the folder itself, or
    below it, if it has none of them. Raises ArgumentError for a folder that is none.
    """
    found = [UpscalerInfo(one.label, latent=one.latent) for one in BUILT_IN.values()]
    if folder is not None:
        found += [UpscalerInfo(path.stem, name_scale(path.stem), path) for path in files(folder)]
    return found


def find_upscaler(name: str | Path, folder: Path | None = None) -> BuiltIn | Path:
    """Return the built-in upscaler of a name, or the path of a model: itself, or in a folder.

    Names have any spelling of A1111's ("Latent (bicubic)", "R-ESRGAN 4x+"); capitals count only
    where there are two. Raises ArgumentError for a name that is none of these.
    """
    text = str(name)
    if isinstance(name, str) and (built_in := find_built_in(name)):
        return built_in
    expanded = os.path.expanduser(name)  # noqa: PTH111  # Path's raises errors for odd names
    if os.path.isfile(expanded):  # noqa: PTH113
        return Path(expanded)
    known = [] if folder is None else files(folder)
    names = {text, *(file for label, file in FILE_LABELS.items() if same(label, text))}
    for fold in (str, str.lower):
        for path in known:
            if {fold(one) for one in names} & {fold(path.stem), fold(path.name)}:
                return path
    raise ArgumentError(unknown(text, known, folder))


def same(label: str, name: str) -> bool:
    """Whether a name is a label in any case."""
    return label.casefold() == name.casefold()


def unknown(name: str, known: list[Path], folder: Path | None) -> str:
    """Return what is wrong with a name that is no upscaler."""
    labels = [*(one.label for one in BUILT_IN.values()), *(path.stem for path in known)]
    hint = did_you_mean(name.lower(), {label.lower(): label for label in labels}, count=3)
    where = "give the path of a model, or a folder that has it"
    if folder is not None:
        shown = ", ".join(path.stem for path in known[:5]) or "none"
        where = f"{folder} has: {shown}"
    return (
        f"{name!r:.200} is no upscaler and no file; {hint or where}"
        + (f" ({where})" if hint else "")
        + f"; {', '.join(one for one in BUILT_IN if '_' not in one)} need no file"
    )


def files(folder: Path) -> list[Path]:
    """Return the models in a folder's folders of upscalers, or in all of it if it has none."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise ArgumentError(f"{str(folder)!r:.200} is no folder; give one of models")
    own = [path for path in folder.iterdir() if path.name.lower() in FOLDERS and path.is_dir()]
    found = [path for each in own or [folder] for path in models(each, ENDINGS) if path.is_file()]
    rank = {ending: place for place, ending in enumerate(ENDINGS)}
    return sorted(found, key=lambda p: (p.stem.lower(), rank[p.suffix.lower()], p))


def name_scale(name: str) -> int | None:
    """Return the scale that a model's name says: 4 of "4x-UltraSharp" and "RealESRGAN_x4plus"."""
    found = SCALES.search(name.lower().replace("_", "-"))
    return int(next(filter(None, found.groups()))) if found else None
