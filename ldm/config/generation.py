"""Defaults of a call: those of ``generation_config.json``, else diffusers'."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ldm.config import Config, SchedulerConfig, UNetConfig
from ldm.config.checking import shown
from ldm.config.tasks import Task
from ldm.errors import CheckpointError

FILE = "generation_config.json"
D = TypeVar("D", bound="Defaults")


@dataclass(frozen=True)
class FewSteps(Config):
    """How a model draws in few steps: by a LoRA in its folder, as LCM-LoRA (Luo et al. 2023).

    Attributes:
        lora: a file in the model's folder, or a folder in it that holds one.
        sampler: as of ``Pipeline.stream``, and so are the others.
    """

    lora: str = "lcm_lora"
    sampler: str = "lcm"
    num_inference_steps: int = 4
    guidance_scale: float = 1.0


@dataclass(frozen=True)
class Defaults(Config):
    """Arguments of ``Pipeline.stream``; and, of a model that has it, a way to draw in few steps."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    classifier_scale: float = 1.0  # used if the model has a classifier
    image_guidance_scale: float = 1.5  # used if the model edits images
    few_steps: FewSteps | None = None

    @classmethod
    def from_dict(cls: type[D], values: dict[str, Any], source: str = "config") -> D:
        """As ``Config.from_dict``."""
        rest = dict(values)
        inner = rest.pop("few_steps", None)
        found = super().from_dict(rest, source)
        if inner is None:
            return found
        place = f"{source}: few_steps"
        if not isinstance(inner, dict):
            raise CheckpointError(f"{place} is {shown(inner)}; expected an object of settings")
        return replace(found, few_steps=FewSteps.from_dict(inner, place))

    @classmethod
    def of(cls, unet: UNetConfig, scheduler: SchedulerConfig, task: Task = "text") -> Defaults:
        """Return the defaults of diffusers' pipeline for a U-Net."""
        if unet.cross_attention_dim is None:  # DDPMPipeline or DDIMPipeline; DiTPipeline's scale
            steps = 1000 if scheduler.sampler_class == "DDPMScheduler" else 50
            return cls(min(steps, scheduler.num_train_timesteps), 4.0)
        if unet.time_cond_proj_dim is not None:  # LCM
            return cls(4, 8.5)
        steps = 100 if task == "edit" else 50
        return cls(steps) if unet.addition_embed_type is None else cls(steps, 5.0)


def own_few_steps(folder: Path) -> FewSteps | None:
    """Return how the model in a folder draws in few steps, if its settings say so.

    Raises CheckpointError for settings that are broken.
    """
    path = folder / FILE
    return Defaults.from_file(path).few_steps if path.is_file() else None
