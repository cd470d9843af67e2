"""Models that enlarge pictures (ESRGAN, Real-ESRGAN, SwinIR, DAT, …), through spandrel.

Our readers open the file, so that no pickle runs code; spandrel gets its tensors, finds out which
architecture they are of, and builds it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.checkpoints.deferred import Deferred, Stored, computable, dense
from ldm.checkpoints.plain import check_finite, check_mapping
from ldm.checkpoints.tensors import read_content
from ldm.errors import ArgumentError, CheckpointError, LDMError, NotEnoughMemoryError
from ldm.fast.waiting import sleep_beside_others
from ldm.images.files import stretch
from ldm.loading.devices import choose_device
from ldm.memory.shortage import is_shortage, message, named_shortage
from ldm.upscaling.pictures import split_alpha, to_array, to_plain
from ldm.upscaling.tiles import TILE, upscale_tiles
from ldm.upscaling.upscaler import check_size

PURPOSES = ("SR", "Restoration")
LARGEST_INDEX = 1000  # of a layer in the name of a tensor: spandrel builds as many layers


class ModelUpscaler:
    """An upscaler that is a network: see ``Upscaler``.

    Attributes:
        network: spandrel's ``ImageModelDescriptor``, in float32.
    """

    def __init__(self, name: str, network: Any) -> None:
        self.name, self.network = name, network
        self.scale: int | None = network.scale
        self.channels: int = network.input_channels
        # Some see all of a picture, and divide it themselves.
        self.tile = None if network.tiling.name == "INTERNAL" else TILE

    def __call__(self, image: Image.Image, width: int, height: int) -> Image.Image:
        """Enlarge as often as it takes to reach the size, at least once; then fit by Lanczos.

        As in A1111. Transparency is enlarged by Lanczos, and grey stays grey.
        """
        image = to_plain(image)
        self.check(image.size, width, height)
        colours, alpha = split_alpha(image)
        while True:
            before = colours.size
            colours = self.enlarge(colours)
            if colours.size == before or (colours.width >= width and colours.height >= height):
                break
        fitted = stretch(colours, height, width)
        if alpha is not None:
            fitted.putalpha(stretch(alpha, height, width))
        return fitted

    def check(self, size: tuple[int, int], width: int, height: int) -> None:
        """See ``Upscaler``; what a pass makes is often larger than the size that is asked for."""
        check_size(width, height)
        passed = scale = self.network.scale
        while scale > 1 and (size[0] * passed < width or size[1] * passed < height):
            passed *= scale
        try:
            check_size(size[0] * passed, size[1] * passed)
        except ArgumentError as error:
            raise ArgumentError(
                f"{self.name} enlarges {scale} times at once, {size[0]}x{size[1]} to "
                f"{size[0] * passed}x{size[1] * passed}: {error}"
            ) from None

    @torch.inference_mode()
    def enlarge(self, image: Image.Image) -> Image.Image:
        """Return a picture "L" or "RGB", ``scale`` times as large along each side.

        Raises CheckpointError if the network's result is not of that size, or not finite.
        """
        pixels = torch.from_numpy(to_array(image))[None]
        if self.channels == 3:
            pixels = pixels.expand(1, 3, -1, -1)
        scale, (_, channels, height, width) = self.network.scale, pixels.shape
        made = np.empty((height * scale, width * scale, channels), dtype=np.uint8)
        with named_shortage():
            for top, left, part in upscale_tiles(self.compute, pixels, scale, self.tile):
                rows = (part[0] * 255).round().byte().permute(1, 2, 0).cpu().numpy()
                made[top : top + len(rows), left : left + rows.shape[1]] = rows
        large = Image.fromarray(made[..., 0] if channels == 1 else made)
        return large.convert(image.mode)

    def compute(self, x: Tensor) -> Tensor:
        """Call the network on x (1, C, h, w) in [0, 1]; one of grey, on each channel alone."""
        sleep_beside_others(self.network.device)
        x = x.to(self.network.device)
        parts = x.split(1, dim=1) if self.channels == 1 else [x]
        y = torch.cat([self.network(part.contiguous()) for part in parts], dim=1)
        want = (1, x.shape[1], *(side * self.network.scale for side in x.shape[2:]))
        if y.shape != want or not y.isfinite().all():
            found = f"of the shape {tuple(y.shape)} in place of {want}"
            found = found if y.shape != want else "NaN or infinite"
            raise CheckpointError(f"{self.name} made pixels that are {found}; get the file again")
        return y


def load_model(path: Path, device: str | torch.device | None = None) -> ModelUpscaler:
    """Load a model's file, in float32.

    device: None takes CUDA if it is available, else the CPU.
    Raises ArgumentError if spandrel cannot be used or a model is for another purpose,
    CheckpointError for a file that is no upscaler that spandrel knows.
    """
    spandrel = import_spandrel()
    where = choose_device(device)
    state = read_state(path, spandrel)
    known = spandrel.MAIN_REGISTRY.architectures("detection")
    try:
        if not any(one.detect(state) for one in known):  # before large files are read
            raise spandrel.UnsupportedModelError
        state = {name: readable(path, name, value) for name, value in state.items()}
        network = spandrel.ModelLoader(device=where).load_from_state_dict(state)
    except spandrel.UnsupportedModelError:
        raise CheckpointError(
            f"{path} is no upscaler, or of an architecture that spandrel {spandrel.__version__} "
            "does not know; give a model such as ESRGAN, Real-ESRGAN, SwinIR, DAT or HAT"
        ) from None
    except LDMError:
        raise
    except Exception as error:  # its architectures raise errors of many types
        if is_shortage(error):
            raise NotEnoughMemoryError(f"{path}: {message(error)}") from error
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise CheckpointError(
            f"{path} is no upscaler that spandrel {spandrel.__version__} can build "
            f"({reason:.200}); get it again"
        ) from None
    check_purpose(path, network)
    network.model.float().eval()
    return ModelUpscaler(path.stem, network)


def check_purpose(path: Path, network: Any) -> None:
    """Raise ArgumentError for a model of spandrel's that does not make pictures larger or finer."""
    kind = network.architecture.name
    if network.purpose not in PURPOSES:
        raise ArgumentError(
            f"{path} is {kind}, a model for {network.purpose}; give one for super-resolution "
            "(SR) or restoration"
        )
    channels = (network.input_channels, network.output_channels)
    if channels not in ((1, 1), (3, 3)):
        raise ArgumentError(
            f"{path} is {kind} that reads {channels[0]} channels and writes {channels[1]}; give a "
            "model of grey (1) or coloured (3) pictures"
        )


def readable(path: Path, name: str, stored: Stored) -> Tensor:
    """Return a tensor as the network computes with it: float32, or whole numbers as they are.

    Raises CheckpointError for values that are not finite.
    """
    value = computable(dense(stored))
    if not value.is_floating_point():
        return value
    check_finite(path, name, value)
    return value.float()


def read_state(path: Path, spandrel: ModuleType) -> dict[str, Stored]:
    """Map the tensors of a model's file, whatever they are wrapped in ("params_ema", …).

    Raises CheckpointError for a file that is none, or that would run code.
    """
    content, _ = read_content(path)
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{path} holds no tensors by names; it is no upscaler")
    content = spandrel.canonicalize_state_dict(dict(content))
    found: dict[str, Stored] = check_mapping(path, content, Tensor, Deferred)
    most = max(LARGEST_INDEX, len(found))
    for name in found:
        if any(len(index) > 9 or int(index) > most for index in re.findall(r"[0-9]+", name)):
            raise CheckpointError(f"{path} names a layer {name:.80} of no network; get it again")
    return found


def import_spandrel() -> ModuleType:
    """Import spandrel. Raises ArgumentError, with the way to install it, where that fails."""
    try:
        import spandrel
    except ModuleNotFoundError as error:
        if error.name == "spandrel":
            raise ArgumentError(
                "models that enlarge pictures need the package spandrel: "
                "pip install 'ldm[upscaling]'"
            ) from None
        raise broken(error) from error
    except Exception as error:  # torchvision raises RuntimeError beside another PyTorch's build
        raise broken(error) from error
    return spandrel


def broken(error: Exception) -> LDMError:
    """Return the error for a spandrel that is installed and cannot be imported."""
    return ArgumentError(
        f"spandrel cannot be imported ({error!s:.200}); install the torchvision of this PyTorch, "
        f"{torch.__version__}: see https://pytorch.org/get-started"
    )
