"""ldm: text-conditioned latent diffusion, from scratch.

    from ldm import Pipeline

    pipe = Pipeline.from_pretrained()
    output = pipe("a red car", seed=1)
    output.images[0].save("car.png")  # with its settings; output.save("out/") saves all

Pipeline            a model: loaded and saved, adapted, optimized, and drawn with
hires_fix           large pictures in two passes
Output, Progress    what a call returns, and what ``Pipeline.stream`` yields
Request             every argument of a picture, documented once
read_info           how a picture was made, from its file: a GenerationInfo
load_image          a file as an RGB image; image_grid lays several side by side
UNet, AutoencoderKL, AutoencoderTiny, CLIPTextEncoder, DDPMScheduler     the parts
LDMError            base of ArgumentError, CheckpointError and ImageError

Importing the package touches no disk, no network and no GPU; heavy modules load when first used.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ldm import _moved

if TYPE_CHECKING:
    from ldm.clip import CLIPTextEncoder
    from ldm.errors import ArgumentError, CheckpointError, ImageError, LDMError
    from ldm.hires import hires_fix
    from ldm.images.files import image_grid, load_image
    from ldm.images.generation_info import GenerationInfo
    from ldm.images.generation_info import read_generation_info as read_info
    from ldm.output import Output
    from ldm.pipeline import Pipeline
    from ldm.request import Request
    from ldm.run import Progress
    from ldm.scheduler import DDPMScheduler
    from ldm.taesd import AutoencoderTiny
    from ldm.unet import UNet
    from ldm.vae import AutoencoderKL

__version__ = "0.2.0"

_moved.install()

# Public name → its module.
MODULE_OF = {
    "ArgumentError": "ldm.errors",
    "AutoencoderKL": "ldm.vae",
    "AutoencoderTiny": "ldm.taesd",
    "CLIPTextEncoder": "ldm.clip",
    "CheckpointError": "ldm.errors",
    "DDPMScheduler": "ldm.scheduler",
    "GenerationInfo": "ldm.images.generation_info",
    "ImageError": "ldm.errors",
    "LDMError": "ldm.errors",
    "Output": "ldm.output",
    "Pipeline": "ldm.pipeline",
    "Progress": "ldm.run",
    "Request": "ldm.request",
    "UNet": "ldm.unet",
    "hires_fix": "ldm.hires",
    "image_grid": "ldm.images.files",
    "load_image": "ldm.images.files",
    "read_info": "ldm.images.generation_info",
}
NAME_IN_MODULE = {"read_info": "read_generation_info"}

__all__ = [
    "ArgumentError",
    "AutoencoderKL",
    "AutoencoderTiny",
    "CLIPTextEncoder",
    "CheckpointError",
    "DDPMScheduler",
    "GenerationInfo",
    "ImageError",
    "LDMError",
    "Output",
    "Pipeline",
    "Progress",
    "Request",
    "UNet",
    "__version__",
    "hires_fix",
    "image_grid",
    "load_image",
    "read_info",
]


def __getattr__(name: str) -> object:
    """Import the module of a public name when the name is first used (PEP 562).

    Raises ImportError, which ``from ldm import …`` passes on, for a class of diffusers.
    """
    if name in MODULE_OF:
        return getattr(import_module(MODULE_OF[name]), NAME_IN_MODULE.get(name, name))
    if not name.startswith("_"):
        from ldm.config.diffusers_habits import find, message

        if (habit := find("import", name)) is not None:
            raise ImportError(message(habit, name))
    raise AttributeError(f"module 'ldm' has no attribute {name!r}")


def __dir__() -> list[str]:
    """List the public names, and the modules that are imported already."""
    modules = [name for name, value in globals().items() if isinstance(value, ModuleType)]
    return sorted({*__all__, *(name for name in modules if not name.startswith("_"))})
