"""Upscaling: pictures enlarged by Pillow's filters, by models that people have, or as latents.

    upscaler = load_upscaler("4x-UltraSharp", folder)
    large = upscaler(image, width, height)

Reading names does not import torch; loading a model does, and needs the extra ``ldm[upscaling]``.
"""

from ldm.upscaling.folder import UpscalerInfo, find_upscaler, list_upscalers
from ldm.upscaling.upscaler import Upscaler, load_upscaler

__all__ = ["Upscaler", "UpscalerInfo", "find_upscaler", "list_upscalers", "load_upscaler"]
