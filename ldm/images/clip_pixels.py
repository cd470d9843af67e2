"""Pictures as CLIP's vision encoder reads them: resized, cropped and normalised.

Source: Radford et al. 2021 (CLIP), the authors' ``_transform``; as transformers'
``CLIPImageProcessor`` with Pillow, its results differ by rounding alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

if TYPE_CHECKING:
    from torch import Tensor

# Of the pictures that OpenAI trained CLIP on; OpenCLIP's encoders have the same.
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def clip_pixels(pictures: Sequence[Image.Image], size: int) -> Tensor:
    """Resize the shorter side of RGB pictures to ``size`` (bicubic), and cut their middle out.

    Returns float32 (B, 3, size, size), of mean 0 and standard deviation 1 over CLIP's data.
    """
    import torch

    pixels = np.stack([np.asarray(centre(picture, size)) for picture in pictures])
    values = (pixels / np.float32(255) - np.array(MEAN, np.float32)) / np.array(STD, np.float32)
    return torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()


def centre(picture: Image.Image, size: int) -> Image.Image:
    """Return the middle square of a picture, resized to ``size`` pixels a side."""
    short = min(picture.size)
    width, height = (int(size * side / short) for side in picture.size)
    resized = picture.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    return resized.crop((left, top, left + size, top + size))
