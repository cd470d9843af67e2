"""Defaults of a call: those of ``generation_config.json``, else diffusers'."""

from __future__ import annotations

from dataclasses import dataclass

from ldm.config import Config, SchedulerConfig, UNetConfig
from ldm.config.tasks import Task


@dataclass(frozen=True)
class Defaults(Config):
    """Arguments of ``Pipeline.stream``."""

    num_inference_steps: int = 50
    guidance_scale: float = 7.5
    classifier_scale: float = 1.0  # used if the model has a classifier
    image_guidance_scale: float = 1.5  # used if the model edits images

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
