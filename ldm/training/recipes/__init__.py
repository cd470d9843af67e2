"""Recipes: the data, model and loss of each kind of training."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from ldm.errors import ArgumentError
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
    "pixel": "PixelRecipe",
    "classifier": "ClassifierRecipe",
}  # module of this package → its class


def build_recipe(config: TrainConfig) -> Recipe:
    """Build the recipe that ``config.recipe`` names. Raises ArgumentError for an unknown name."""
    check_defaults()
    if config.recipe not in RECIPES:
        expected = ", ".join(map(repr, RECIPES))
        raise ArgumentError(f"recipe is {config.recipe!r}; expected one of {expected}")
    module = import_module(f"ldm.training.recipes.{config.recipe}")
    return getattr(module, RECIPES[config.recipe])(config)
