"""Train a ControlNet for a model whose weights stay as they are (Zhang et al. 2023, eq. 5)."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ldm.checkpoints.folder import save_component
from ldm.config.settings import read_table, within
from ldm.control.controlnet import ControlNet
from ldm.control.preprocessors import PREPROCESSORS
from ldm.errors import ArgumentError
from ldm.fast import adapt_to_cpu
from ldm.images import image_grid, to_pil
from ldm.training.config import TrainConfig
from ldm.training.data import Pictures
from ldm.training.data.crops import Size
from ldm.training.recipes.cached_latents import Drawn
from ldm.training.recipes.captioned_data import captioned_pictures
from ldm.training.recipes.frozen_base import FrozenBaseOptions, FrozenBaseRecipe, mirror
from ldm.training.warm_start import begin_with
from ldm.unet import Residuals

NAME = "trained"  # of the ControlNet in the base that draws with it
NO_WEIGHTS = sorted(PREPROCESSORS.keys() - {"inpaint"})  # "inpaint" needs a mask


@dataclass(kw_only=True)
class ControlNetOptions(FrozenBaseOptions):
    """The table ``[options]``. The control pictures are a column's, or made of the pictures."""

    # Name of the column of the control pictures; in a folder of images.npy, of another such file.
    control: str | None = None
    # Names of ``ldm.control.preprocessors``, of which one is drawn for each picture of a batch.
    preprocessors: tuple[str, ...] = ()
    caption_dropout: float = within("[0, 1]", 0.5)  # so that it reads the picture (section 3.2)
    shown: int = within("[1, 64]", 8)  # held-out pictures to draw after, to show the progress

    def __post_init__(self) -> None:
        self.preprocessors = tuple(self.preprocessors)
        unknown = [name for name in self.preprocessors if name not in NO_WEIGHTS]
        if unknown:
            raise ArgumentError(
                f"options.preprocessors has {unknown[0]!r}; expected {', '.join(NO_WEIGHTS)}"
            )
        if bool(self.preprocessors) == bool(self.control):
            raise ArgumentError(
                "give options.control, the column of the control pictures, or "
                "options.preprocessors, which make them of the pictures"
            )


class PictureReader(nn.Module):
    """A ControlNet with all that is trained in one call, as several processes need it."""

    def __init__(self, network: ControlNet) -> None:
        super().__init__()
        self.network = network

    def forward(
        self, x: Tensor, t: Tensor, hint: Tensor, conditions: dict[str, Tensor]
    ) -> list[Tensor]:
        """As ``ControlNet.forward``, of pictures (B, channels, H, W)."""
        return self.network(x, t, hint=self.network.embed_hint(hint), **conditions)


class ControlNetRecipe(FrozenBaseRecipe[PictureReader]):
    """Learns what to add to a frozen U-Net, so that it draws after control pictures.

    Raises ArgumentError for options that do not go together, CheckpointError for a base that
    cannot be loaded or has a U-Net that no ControlNet fits.
    """

    reads_crops = False  # as diffusers' examples train it

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(ControlNetOptions, config.options, "options.")
        super().__init__(config, options, "a ControlNet")
        self.controls: Pictures | None = None
        if options.control:
            self.controls = control_pictures(self.data, config, options)
        network = adapt_to_cpu(ControlNet.from_unet(self.pipe.unet, **config.model))
        begin_with(network, config.start)
        self.model = PictureReader(network)

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().noised(drawn, generator)
        names = self.options.preprocessors
        chosen = torch.randint(len(names) or 1, (len(drawn.rows),), generator=generator)
        each = [names[i] for i in chosen] if names else []
        hints = self.hints(drawn.rows, self.picture_size(drawn), each)
        return batch | {"hint": mirror(hints, drawn)}

    def hints(self, rows: Tensor, size: Size, preprocessors: list[str]) -> Tensor:
        """Return the control pictures of rows, (B, 3, H, W) in [0, 1]; preprocessors: of each."""
        if self.controls is not None:
            return self.controls.pixels(rows, size) / 2 + 0.5
        pictures = to_pil(self.data.pixels(rows, size))
        pairs = zip(preprocessors, pictures, strict=True)
        made = [np.asarray(PREPROCESSORS[name](picture)) for name, picture in pairs]
        return torch.from_numpy(np.stack(made)).permute(0, 3, 1, 2) / 255

    def example(self, count: int) -> dict[str, Tensor]:
        batch = super().example(count)
        return batch | {"hint": torch.zeros(count, 3, *self.latents.sizes[0])}

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        conditions, x_t, t = self.conditions(batch), self.x_t(batch), batch["t"]
        *skips, middle = model(x_t, t, batch["hint"], conditions)
        return self.error(
            self.pipe.unet(x_t, t, **conditions, residuals=Residuals(skips, middle)), batch
        )

    def evaluate(self, model: PictureReader) -> tuple[Image.Image | None, dict[str, float]]:
        """Draw after held-out pictures: the control pictures over what is drawn."""
        rows = self.data.held_out[: self.options.shown]
        if not len(rows):
            return None, {}
        names = self.options.preprocessors
        cycled = [names[i % len(names)] for i in range(len(rows))] if names else []
        hints = self.hints(rows, self.latents.sizes[0], cycled)
        self.pipe.controlnets[NAME], self.pipe.origin.controlnets[NAME] = model.network, NAME
        try:
            output = self.pipe(self.data.captions(rows), control_image=hints, seed=0)
        finally:
            del self.pipe.controlnets[NAME], self.pipe.origin.controlnets[NAME]
        drawn = cast("list[Image.Image]", output.images)
        return image_grid([*to_pil(2 * hints - 1), *drawn], columns=len(rows)), {}

    def save(self, model: PictureReader, folder: Path) -> None:
        """Write ``controlnet/``: ``ldm generate --controlnet`` takes the run's folder."""
        save_component(model.network, folder / "controlnet", torch.float16)


def control_pictures(data: Pictures, config: TrainConfig, options: ControlNetOptions) -> Pictures:
    """Open the data set once more, by the column of its control pictures.

    Raises ArgumentError where a row has none.
    """
    column: dict[str, Any] = {
        **{key: value for key, value in options.data.items() if key != "mask"},
        "image": options.control,
        "crop": "centre",
    }
    found = captioned_pictures(config.data, column)
    if len(found) != len(data):
        raise ArgumentError(
            f"{config.data} has {len(data)} pictures, but {len(found)} control pictures "
            f"({options.control}); give each row one"
        )
    return found
