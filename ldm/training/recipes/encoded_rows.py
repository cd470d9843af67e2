"""What is computed of a picture once: its latents, the sizes that SDXL reads, its mask."""

from __future__ import annotations

import warnings
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from ldm.training.data import Pictures
from ldm.training.data.crops import Size
from ldm.training.data.masks import Masks
from ldm.vae import AutoencoderKL


class EncodedRows(NamedTuple):
    """What is computed of n pictures at one size."""

    latents: np.ndarray  # float16 (n, 1 or 2 with mirrored ones, C, h, w)
    # int32 (n, 5): stored height and width, the crop's top, left, and left in the mirrored picture.
    crops: np.ndarray
    masks: np.ndarray | None  # float16 (n, 1, h, w) in [0, 1]; None without masks


class RowEncoder:
    """Encodes pictures: means of the VAE's posterior, scaled.

    Args:
        masks: of the data's first rows; those behind them count as a whole.
        flip: whether each picture is encoded mirrored, too.
    """

    def __init__(self, vae: AutoencoderKL, data: Pictures, masks: Masks | None, flip: bool) -> None:
        self.vae, self.data, self.masks, self.flip = vae, data, masks, flip

    def readable(self, rows: Tensor, size: Size) -> Tensor:
        """Return those rows whose pictures and masks can be read; warns of the others."""
        rows = self.data.readable(rows, size)
        if self.masks is None:
            return rows
        masked = rows < len(self.masks.data)
        return torch.cat([self.masks.readable(rows[masked], size), rows[~masked]])

    @torch.no_grad()
    def encode(self, rows: Tensor, size: Size, device: torch.device) -> EncodedRows:
        """Encode readable rows (n,), at a size in px."""
        vae = self.vae.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        x = self.data.pixels(rows, size).to(device)
        with torch.autocast(device.type, torch.bfloat16):
            z = [vae.encode(x.flip(-1) if mirrored else x) for mirrored in range(1 + self.flip)]
        latents = torch.stack([each.half().cpu() for each in z], dim=1)
        crops = np.array([self.data.crop_of(row, size) for row in rows.tolist()], np.int32)
        return EncodedRows(latents.numpy(), crops, self._masks(rows, size))

    def _masks(self, rows: Tensor, size: Size) -> np.ndarray | None:
        if self.masks is None:
            return None
        scale = self.vae.config.scale
        found = torch.ones(len(rows), 1, size[0] // scale, size[1] // scale)
        masked = rows < len(self.masks.data)
        if masked.any():
            found[masked] = self.masks.at(rows[masked], size, scale)
        for row in rows[found.flatten(1).amax(1) == 0].tolist():
            warnings.warn(
                f"the mask of {self.data.row_name(row)} is black all over: nothing is learnt of it",
                stacklevel=2,
            )
        return found.half().numpy()


def time_ids_of(crops: np.ndarray, mirrored: Tensor, size: Size) -> Tensor:
    """Return what SDXL reads of pictures' sizes, float32 (B, 6) (Podell et al. 2023, section 2.2).

    These are the stored height and width, the top and left of the crop of the resized and perhaps
    mirrored picture, and the height and width of the crop, ``size``.
    """
    found = torch.from_numpy(np.asarray(crops)).float()
    left = torch.where(mirrored, found[:, 4], found[:, 3])
    target = torch.tensor(size, dtype=torch.float32).expand(len(found), 2)
    return torch.cat([found[:, :3], left[:, None], target], dim=1)
