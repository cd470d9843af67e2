"""ldm: text-conditioned latent diffusion, from scratch.

    from ldm import Pipeline

    pipe = Pipeline.from_pretrained()
    pipe("a red car", seed=1).images[0].save("car.png")

Importing the package touches no disk, no network and no GPU; heavy modules load when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ldm import _moved

if TYPE_CHECKING:
    from ldm.clip import CLIPTextEncoder
    from ldm.pipeline import Pipeline
    from ldm.scheduler import DDPMScheduler
    from ldm.taesd import AutoencoderTiny
    from ldm.unet import UNet
    from ldm.vae import AutoencoderKL

__version__ = "0.1.0"

_moved.install()

MODULE_OF = {
    "AutoencoderKL": "ldm.vae",
    "AutoencoderTiny": "ldm.taesd",
    "CLIPTextEncoder": "ldm.clip",
    "DDPMScheduler": "ldm.scheduler",
    "Pipeline": "ldm.pipeline",
    "UNet": "ldm.unet",
}

__all__ = [
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextEncoder",
    "DDPMScheduler",
    "Pipeline",
    "UNet",
    "__version__",
]


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used (PEP 562)."""
    if name not in MODULE_OF:
        raise AttributeError(f"module 'ldm' has no attribute {name!r}")
    return getattr(import_module(MODULE_OF[name]), name)
