"""Recipes: what each training learns from, and what it minimises."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ldm.errors import ArgumentError

if TYPE_CHECKING:
    from ldm.training.config import TrainConfig
    from ldm.training.loop import Recipe


def build_recipe(config: TrainConfig) -> Recipe:
    """The recipe that ``config.recipe`` names. Raises ArgumentError for an unknown name."""
    if config.recipe == "autoencoder":
        from ldm.training.recipes.autoencoder import AutoencoderRecipe as recipe
    elif config.recipe == "text":
        from ldm.training.recipes.text import TextRecipe as recipe
    elif config.recipe == "latent":
        from ldm.training.recipes.latent import LatentRecipe as recipe
    else:
        raise ArgumentError(
            f"recipe is {config.recipe!r}; expected 'autoencoder', 'text' or 'latent'"
        )
    return recipe(config)
