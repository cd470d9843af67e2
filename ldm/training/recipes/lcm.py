"""Distil a model to a few steps: latent consistency models (Luo et al. 2023), and TCD's."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldm.config.settings import choice, read_table, within
from ldm.errors import ArgumentError
from ldm.scheduler import DDPMScheduler
from ldm.training.config import TrainConfig
from ldm.training.distillation import SkippingDDIM, consistency_pair, distance
from ldm.training.finetuning.trained import Trained
from ldm.training.recipes.cached_latents import Drawn
from ldm.training.recipes.distillation import DistillationOptions, DistillationRecipe, few_steps

SCHEDULERS = {"lcm": "LCMScheduler", "tcd": "TCDScheduler"}  # by the sampler that draws


@dataclass(kw_only=True)
class LCMOptions(DistillationOptions):
    """The table ``[options]``."""

    # What is to agree at two times of one trajectory: "lcm", its clean end; "tcd", any point below
    # (Zheng et al. 2024), whose sampler "tcd" takes more steps without getting blurred.
    objective: str = choice(*SCHEDULERS)
    # Of "tcd": only the end of a phase, of so many; as many steps draw, with eta 0 (Wang et al.
    # 2024). Each learns a part of the trajectory, so that this is learnt far sooner.
    phases: int | None = within("[1, inf)", None)
    num_ddim_timesteps: int = within("[1, inf)", 50)  # N of the teacher's steps, of T/N timesteps
    loss_type: str = choice("huber", "l2")
    huber_c: float = within("(0, inf)", 0.001)
    num_inference_steps: int | None = within("[1, inf)", 4)  # of the pictures that show progress

    @property
    def drawing_steps(self) -> int | None:
        """Steps that it is to draw in: as many as phases, if there are any."""
        return self.phases or self.num_inference_steps


class LCMRecipe(DistillationRecipe):
    """Learns to jump to the end of a trajectory that the guided base goes in many steps.

    The target is the student itself, without a gradient; of a whole U-Net its moving average, with
    ``ema_decay``, for which diffusers has 0.95. Raises as ``DistillationRecipe`` does.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.options = options = read_table(LCMOptions, config.options, "options.")
        if options.min_snr_gamma is not None:
            raise ArgumentError("options.min_snr_gamma weighs no consistency loss; leave it out")
        if options.phases is not None and options.objective != "tcd":
            raise ArgumentError(
                'options.phases divides a trajectory, of whose points only objective = "tcd" '
                "knows more than the end; leave it out, or take that objective"
            )
        super().__init__(config, options, "a consistency model")
        self.solver = SkippingDDIM(self.scheduler, options.num_ddim_timesteps)
        if options.phases is not None:
            self.check_phases(options.phases)

    def check_phases(self, phases: int) -> None:
        """Raise ArgumentError unless phases begin where the sampler's steps will."""
        taught, own = self.solver.steps, self.scheduler.config.original_inference_steps
        if phases > taught:
            raise ArgumentError(
                f"options.phases is {phases}; it must be at most num_ddim_timesteps, {taught}"
            )
        if self.options.train == "lora" and taught != own:
            raise ArgumentError(
                f"options.num_ddim_timesteps is {taught}, but with {self.options.base}, whose "
                f"scheduler has original_inference_steps = {own}, steps begin elsewhere than "
                f"phases; give {own}"
            )

    def saved_parts(self) -> dict[str, Any]:
        """Return the scheduler and the defaults of a model of few steps."""
        parts, options = super().saved_parts(), self.options
        config = replace(
            self.pipe.scheduler.config,
            sampler_class=SCHEDULERS[options.objective],
            original_inference_steps=options.num_ddim_timesteps,
            timestep_spacing=None,
        )
        scale = parts["defaults"].guidance_scale
        defaults = few_steps(self.pipe, options.drawing_steps or 4, scale)
        return {"scheduler": DDPMScheduler(config), "defaults": defaults}

    def noised(self, drawn: Drawn, generator: torch.Generator) -> dict[str, Tensor]:
        batch = super().noised(drawn, generator)
        batch["t"] = self.solver.start(batch["t"])
        if self.options.objective == "tcd":
            share = torch.rand(len(batch["t"]), generator=generator)
            batch["s"] = self.solver.trajectory(batch["t"], share)
        if self.options.phases is not None:
            batch["s"] = self.solver.phase_end(batch["t"], self.options.phases)
        return batch

    def example(self, count: int) -> dict[str, Tensor]:
        batch = super().example(count)
        batch["t"] = self.solver.start(batch["t"])
        return batch

    def loss(self, model: nn.Module, batch: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        inputs, options = self.inputs(batch), self.options
        predicted, target = consistency_pair(
            self.solver,
            partial(model, inputs=inputs),
            partial(self.teach, inputs=inputs, w=batch["w"]),
            partial(self.target, inputs=inputs),
            self.x_t(batch),
            batch["t"],
            batch.get("s"),
        )
        error = distance(predicted, target, options.loss_type, options.huber_c, batch.get("mask"))
        squares = distance(predicted.detach(), target, "l2").mean()
        return (batch.get("weight", 1.0) * error).mean(), {"mse": squares}

    @torch.no_grad()
    def target(self, x: Tensor, t: Tensor, inputs: dict[str, Tensor]) -> Tensor:
        """Return the output of the target network."""
        if self.options.train == "full":
            return self.predict_averaged(x, t, inputs)
        return self.model(x, t, inputs)

    def shown(self) -> dict[str, Any]:
        return super().shown() | self.usage()

    def usage(self) -> dict[str, Any]:
        """Return the arguments that draw with what is learnt."""
        full = self.options.train == "full"
        scale = self.model.pipe.defaults.guidance_scale if full else 1.0
        given = self.options
        return {
            "sampler": given.objective,
            "num_inference_steps": given.drawing_steps,
            "guidance_scale": scale if given.guidance_scale is None else given.guidance_scale,
        }

    def save(self, model: Trained, folder: Path) -> None:
        """Write the LoRA, or the whole model as diffusers' pipeline of latent consistency."""
        options = self.options
        sampler = options.objective if options.phases is None else "lcm or tcd"
        usage = f"sampler {sampler}, {options.phases or '4 to 8'} steps, guidance scale 1"
        self.save_student(model, folder, usage)
