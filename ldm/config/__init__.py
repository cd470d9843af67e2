"""Configurations of the modules, as a diffusers folder's JSON holds them; without torch.

Each is imported when it is first used: making their dataclasses takes a tenth of ``--help``.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ldm.config.base import Config
    from ldm.config.blocks import BlocksConfig
    from ldm.config.classifier import ClassifierConfig
    from ldm.config.clip import CLIPTextConfig
    from ldm.config.clip_vision import CLIPVisionConfig
    from ldm.config.controlnet import ControlNetConfig
    from ldm.config.ip_adapter import IPAdapterConfig
    from ldm.config.json import read_json, write_json
    from ldm.config.scheduler import SchedulerConfig
    from ldm.config.taesd import TAESDConfig
    from ldm.config.unet import UNetConfig
    from ldm.config.vae import VAEConfig

MODULE_OF_NAME = {
    "BlocksConfig": "ldm.config.blocks",
    "CLIPTextConfig": "ldm.config.clip",
    "CLIPVisionConfig": "ldm.config.clip_vision",
    "ClassifierConfig": "ldm.config.classifier",
    "Config": "ldm.config.base",
    "ControlNetConfig": "ldm.config.controlnet",
    "IPAdapterConfig": "ldm.config.ip_adapter",
    "SchedulerConfig": "ldm.config.scheduler",
    "TAESDConfig": "ldm.config.taesd",
    "UNetConfig": "ldm.config.unet",
    "VAEConfig": "ldm.config.vae",
    "read_json": "ldm.config.json",
    "write_json": "ldm.config.json",
}

__all__ = [
    "BlocksConfig",
    "CLIPTextConfig",
    "CLIPVisionConfig",
    "ClassifierConfig",
    "Config",
    "ControlNetConfig",
    "IPAdapterConfig",
    "SchedulerConfig",
    "TAESDConfig",
    "UNetConfig",
    "VAEConfig",
    "read_json",
    "write_json",
]


def __getattr__(name: str) -> object:
    """Import the module of a name when the name is first used (PEP 562)."""
    if name not in MODULE_OF_NAME:
        raise AttributeError(f"module 'ldm.config' has no attribute {name!r}")
    return getattr(import_module(MODULE_OF_NAME[name]), name)
