"""What the recipes share that train something beside a model whose weights stay as they are."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import TypeVar

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from ldm.config.tasks import TASK_NAMES
from ldm.errors import ArgumentError
from ldm.fast.frozen import freeze
from ldm.pipeline import Pipeline
from ldm.training.checkpointing import checkpoint_partly
from ldm.training.config import TrainConfig
from ldm.training.data.crops import Size
from ldm.training.recipes.cached_latents import Drawn
from ldm.training.recipes.captioned import CaptionedRecipe
from ldm.training.recipes.captioned_options import CaptionedOptions
from ldm.training.recipes.class_pictures import draw_class_pictures
from ldm.training.recipes.prior import class_folder, missing_class_pictures
from ldm.vae import AutoencoderKL

M = TypeVar("M", bound=nn.Module)
HALVES = {"bf16": torch.bfloat16, "fp16": torch.float16}  # by accelerate's names


@dataclass(kw_only=True)
class FrozenBaseOptions(CaptionedOptions):
    """What the tables ``[options]`` of these recipes share."""

    # The model: a folder, a file or a hub id, as ``ldm generate --model`` takes; "": the built-in.
    base: str = ""


class FrozenBaseRecipe(CaptionedRecipe[M]):
    """Learns what steers a frozen U-Net; the gradient passes through it.

    Attributes:
        pipe: the model, in float32.
    """

    def __init__(self, config: TrainConfig, options: FrozenBaseOptions, what: str) -> None:
        """Load the base. what: is trained, for messages.

        Raises ArgumentError for a base that draws from more than a text, CheckpointError for one
        that cannot be loaded.
        """
        self.pipe, vae = load_base(options.base, what)
        if options.data.get("size") is None:  # what the model draws
            options.data = options.data | {"size": self.pipe.default_size()[0]}
        models, scheduler, unet = self.pipe.text_models, self.pipe.scheduler, self.pipe.unet
        super().__init__(config, options, vae, models, scheduler, unet.config)

    def prepare(self, accelerator: Accelerator) -> None:
        """Draw the class pictures that are missing, then prepare as others do."""
        self.freeze_networks()
        options = self.captioned
        if options.class_prompt is not None:
            folder = class_folder(options, self.config.output)
            if accelerator.is_main_process and missing_class_pictures(options, self.config.output):
                self.pipe.to(accelerator.device)
                draw_class_pictures(
                    self.pipe, options.class_prompt, folder, options.num_class_images
                )
            accelerator.wait_for_everyone()
        for network in self.networks.values():
            network.to(accelerator.device)
            network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        super().prepare(accelerator)

    def freeze_networks(self) -> None:
        """Bring the base's networks into the form in which training reads them.

        The weights of those that are frozen lie in autocast's dtype, which converts them at every
        step otherwise: half the memory, and the same products.
        """
        for part, network in self.networks.items():
            if is_frozen(network):
                freeze(network, HALVES.get(self.config.mixed_precision), self.exact_layers(part))
                if not torch.cuda.is_available():
                    checkpoint_partly(network)

    @property
    def frozen(self) -> list[nn.Module]:
        self.freeze_networks()
        return [*filter(is_frozen, self.networks.values()), self.vae]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The base's U-Net and text encoders."""
        return {name: getattr(self.pipe, name) for name in ("unet", *self.pipe.inversions.models)}

    def exact_layers(self, part: str) -> Collection[str]:
        """Return the paths of a network's layers whose weights training reads in float32."""
        return ()

    def picture_size(self, drawn: Drawn) -> Size:
        """Return the (height, width) in px of the pictures of rows drawn."""
        height, width = (side * self.vae.config.scale for side in drawn.latents.shape[2:])
        return height, width


def is_frozen(network: nn.Module) -> bool:
    """Whether nothing of a network learns."""
    return not any(parameter.requires_grad for parameter in network.parameters())


def mirror(pictures: Tensor, drawn: Drawn) -> Tensor:
    """Mirror the pictures (B, C, H, W) of rows drawn where their latents are."""
    return torch.where(drawn.mirrored[:, None, None, None], pictures.flip(-1), pictures)


def load_base(name: str, what: str) -> tuple[Pipeline, AutoencoderKL]:
    """Load the model that something is trained for, and its VAE: frozen, in float32, on the CPU.

    what: is trained, for messages. Raises ArgumentError for a model that is not from text to
    image in latents.
    """
    pipe = Pipeline.from_pretrained(name or None, dtype=torch.float32, device="cpu")
    pipe.need_text(f"{what} is trained for models of the Stable Diffusion family")
    if pipe.task != "text" or not isinstance(pipe.vae, AutoencoderKL):
        raise ArgumentError(
            f"options.base is {name}, a model for {TASK_NAMES[pipe.task]}; give one that draws "
            "from a text alone, with a VAE of Stable Diffusion's kind"
        )
    for part in (pipe.unet, pipe.vae, *(model.encoder for model in pipe.text_models)):
        part.requires_grad_(False)
    return pipe, pipe.vae
