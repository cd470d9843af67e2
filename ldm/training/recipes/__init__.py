"""Recipes: the data, model and loss of each kind of training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ldm.errors import ArgumentError, LDMError
from ldm.training.foreign import check_defaults

if TYPE_CHECKING:
    from ldm.training.config import TrainConfig
    from ldm.training.recipes.base import Recipe

RECIPES = {
    "autoencoder": "AutoencoderRecipe",
    "text": "TextRecipe",
    "latent": "LatentRecipe",
    "controlnet": "ControlNetRecipe",
    "image_encoder": "ImageEncoderRecipe",
    "ip_adapter": "IPAdapterRecipe",
    "lora": "LoraRecipe",
    "full": "FullRecipe",
    "lcm": "LCMRecipe",
    "guidance_distillation": "GuidanceDistillationRecipe",
    "textual_inversion": "TextualInversionRecipe",
    "pivotal": "PivotalRecipe",
    "pixel": "PixelRecipe",
    "classifier": "ClassifierRecipe",
}  # module of this package → its class


def build_recipe(config: TrainConfig) -> Recipe:
    """Build the recipe that ``config.recipe`` names.

    Raises ArgumentError for an unknown name, and for settings that no network can be built of;
    other errors of this package as each recipe says.
    """
    check_defaults()
    if config.recipe not in RECIPES:
        expected = ", ".join(map(repr, RECIPES))
        raise ArgumentError(f"recipe is {config.recipe!r}; expected one of {expected}")
    module = import_module(f"ldm.training.recipes.{config.recipe}")
    try:
        return getattr(module, RECIPES[config.recipe])(config)
    except LDMError:
        raise
    except Exception as error:  # of PyTorch and of constructors, for numbers that go nowhere
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise ArgumentError(
            f"recipe {config.recipe!r} cannot be built with these settings ({reason:.300}); check "
            "[model], [options] and the paths"
        ) from error
