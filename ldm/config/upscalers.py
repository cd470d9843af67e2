"""The upscalers that need no file, by name: Pillow's filters, and interpolation of latents.

Names and labels are those of A1111's web UI (``modules/upscaler.py`` and ``latent_upscale_modes``
in ``modules/shared.py``).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Literal

LANCZOS = "lanczos"


@dataclass(frozen=True)
class BuiltIn:
    """An upscaler without a file.

    Attributes:
        name: as a request has it. label: as A1111 shows it, and writes it into pictures.
        mode: of Pillow's ``Image.resize``, or of ``torch.nn.functional.interpolate``.
        latent: whether it enlarges latents in place of pictures. antialias: when it makes smaller.
    """

    name: str
    label: str
    mode: Literal["lanczos", "nearest", "bilinear", "bicubic", "nearest-exact"]
    latent: bool = False
    antialias: bool = False


BUILT_IN: Mapping[str, BuiltIn] = {
    one.name: one
    for one in (
        BuiltIn(LANCZOS, "Lanczos", "lanczos"),
        BuiltIn("nearest", "Nearest", "nearest"),
        BuiltIn("bilinear", "Bilinear", "bilinear"),
        BuiltIn("bicubic", "Bicubic", "bicubic"),
        BuiltIn("latent", "Latent", "bilinear", True),
        BuiltIn("latent_antialiased", "Latent (antialiased)", "bilinear", True, True),
        BuiltIn("latent_bicubic", "Latent (bicubic)", "bicubic", True),
        BuiltIn(
            "latent_bicubic_antialiased", "Latent (bicubic antialiased)", "bicubic", True, True
        ),
        BuiltIn("latent_nearest", "Latent (nearest)", "nearest", True),
        BuiltIn("latent_nearest_exact", "Latent (nearest-exact)", "nearest-exact", True),
    )
}
# What A1111 calls files that it downloads → the names of those files.
FILE_LABELS = {
    "R-ESRGAN 4x+": "RealESRGAN_x4plus",
    "R-ESRGAN 4x+ Anime6B": "RealESRGAN_x4plus_anime_6B",
    "R-ESRGAN 2x+": "RealESRGAN_x2plus",
    "R-ESRGAN General 4xV3": "realesr-general-x4v3",
    "R-ESRGAN General WDN 4xV3": "realesr-general-wdn-x4v3",
    "R-ESRGAN AnimeVideo": "realesr-animevideov3",
    "ESRGAN_4x": "ESRGAN",
    "DAT x2": "DAT_x2",
    "DAT x3": "DAT_x3",
    "DAT x4": "DAT_x4",
    "SwinIR 4x": "SwinIR_4x",
    "ScuNET": "ScuNET",
    "ScuNET PSNR": "ScuNET_PSNR",
}
ENDINGS = (".safetensors", ".sft", ".pth", ".pt", ".ckpt", ".bin")  # of models; the safest first


def plain(name: str) -> str:
    """Return a name without case and marks: "Latent (bicubic)" and "latent_bicubic" are one."""
    return re.sub(r"[\W_]+", "", name.casefold())


BY_PLAIN_NAME = {plain(one.name): one for one in BUILT_IN.values()}
# In A1111, "None" stretches a picture as Lanczos does when it has to have a size.
BY_PLAIN_NAME["none"] = BUILT_IN[LANCZOS]


def find_built_in(name: str) -> BuiltIn | None:
    """Return the upscaler of a name or label, in any spelling; None if it is that of a file."""
    return None if "/" in name or "\\" in name else BY_PLAIN_NAME.get(plain(name))


def upscaler_name(given: str | Path) -> str:
    """Return the name that a picture's settings record: a model's is its file's, without ending."""
    text = str(given)
    if isinstance(given, str) and (built_in := find_built_in(given)):
        return built_in.name
    last = PurePosixPath(text.replace("\\", "/")).name
    ending = PurePosixPath(last).suffix
    return last.removesuffix(ending) if ending.lower() in ENDINGS else last


def upscaler_label(given: str | Path) -> str:
    """Return the name that A1111 writes into pictures: "Lanczos", "4x-UltraSharp"."""
    name = upscaler_name(given)
    return BUILT_IN[name].label if name in BUILT_IN else name
