"""Configurations of the modules, as a diffusers folder's JSON holds them; without torch."""

from ldm.config.base import Config
from ldm.config.classifier import ClassifierConfig
from ldm.config.clip import CLIPTextConfig
from ldm.config.json import read_json, write_json
from ldm.config.scheduler import SchedulerConfig
from ldm.config.unet import BlocksConfig, UNetConfig
from ldm.config.vae import VAEConfig

__all__ = [
    "BlocksConfig",
    "CLIPTextConfig",
    "ClassifierConfig",
    "Config",
    "SchedulerConfig",
    "UNetConfig",
    "VAEConfig",
    "read_json",
    "write_json",
]
